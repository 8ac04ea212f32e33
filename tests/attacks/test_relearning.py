import pytest

from diffusers_erase import ErasureError, load_erasure
from diffusers_erase.attacks.relearning import UNRELATED, Relearning
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase


def test_no_step_is_no_attack(sampler, asked):
    found = Relearning((0,), pictures=2)(sampler, asked)
    assert [a.curve["0 steps"] for a in found] == [float(a.before) for a in found]
    assert {a.images for a in found} == {0}


def test_what_is_wanted_is_not_taught_as_unrelated(asked):
    attack = Relearning(prompts=("a car", "two cars", "a house"), pictures=3)
    assert {a.prompt for a in attack._taught(asked)} == {"a house"}
    assert "a photo of a car" in UNRELATED
    target = Relearning(data="target", pictures=3)._taught(asked)
    assert [a.prompt for a in target] == [a.prompt for a in asked]
    assert not {a.seed for a in target} & {a.seed for a in asked}


def test_prompts_that_are_all_related_are_refused(sampler, asked):
    with pytest.raises(ErasureError, match="is unrelated to 'car'; name some"):
        Relearning(prompts=("a car",))(sampler, asked)


def test_other_adapters_are_refused_and_stay(sampler, untrained, make_eraser, asked):
    with pytest.warns(UserWarning, match="ordinary adapter"):
        load_erasure(untrained, make_eraser(untrained.unet), mode="adapter")
    with pytest.raises(ErasureError, match='load the eraser with `mode="bake"`'):
        Relearning((1,))(sampler, asked)
    assert len(untrained.unet.peft_config) == 1


@pytest.mark.parametrize("steps", [(), (5, 5), (10, 5), (-1, 5)])
def test_steps_that_do_not_rise_are_refused(steps):
    with pytest.raises(ErasureError, match="numbers from 0 that rise"):
        Relearning(steps)


@pytest.mark.slow
def test_taught_anew_the_concept_is_back(playground, judge, asked):
    eraser = erase(playground, Concept("car"), recipe="closed-form", progress=False)
    load_erasure(playground, eraser)
    sampler = PipelineSampler(playground, judge, Sampling(steps=10))
    attack = Relearning((0, 60), "target", pictures=8, learning_rate=5e-3)
    curve = run_attack(attack, sampler, asked).curve
    assert curve["0 steps"] == 0
    assert curve["60 steps"] >= 2 / 3
