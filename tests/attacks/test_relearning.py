import pytest

from diffusers_erase import ErasureError, load_erasure
from diffusers_erase.attacks import relearning
from diffusers_erase.attacks.attack_run import draw_cases
from diffusers_erase.attacks.relearning import UNRELATED, Relearning
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase


def test_relearning_with_no_update_is_the_picture_without_the_attack(sampler, cases):
    found = Relearning((0,), pictures=2)(sampler, cases)
    assert [a.curve["0 steps"] for a in found] == [float(a.before) for a in found]
    assert {a.images for a in found} == {0}


def test_relearning_draws_between_updates_without_changing_them(sampler, cases, monkeypatch):
    drawn = []

    def recorded(*args, **options):
        pictures = draw_cases(*args, **options)
        drawn.append([picture.tobytes() for picture in pictures])
        return pictures

    monkeypatch.setattr(relearning, "draw_cases", recorded)
    options = {"pictures": 2, "batch": 2, "learning_rate": 0.1}
    curve = Relearning((0, 1, 2, 3), **options)(sampler, cases)
    first, second, third = drawn
    drawn.clear()
    alone = Relearning((3,), **options)(sampler, cases)
    assert drawn == [third]
    assert first != second != third
    assert [set(a.curve) for a in curve] == [{f"{n} steps" for n in range(4)}] * len(cases)
    assert [a.curve["3 steps"] for a in curve] == [a.curve["3 steps"] for a in alone]


def test_relearning_trains_on_prompts_that_name_no_wanted_label_and_on_other_seeds(cases):
    attack = Relearning(prompts=("a car", "two cars", "a house"), pictures=3)
    assert {a.prompt for a in attack._training_cases(cases)} == {"a house"}
    assert "a photo of a car" in UNRELATED
    target = Relearning(data="target", pictures=3)._training_cases(cases)
    assert [a.prompt for a in target] == [a.prompt for a in cases]
    assert not {a.seed for a in target} & {a.seed for a in cases}


def test_relearning_refuses_prompts_that_all_name_a_wanted_label(sampler, cases):
    with pytest.raises(ErasureError, match="All 1 prompts to train on name 'car'"):
        Relearning(prompts=("a car",))(sampler, cases)


def test_relearning_refuses_a_denoiser_with_adapters(sampler, untrained, make_eraser, cases):
    with pytest.warns(UserWarning, match="ordinary adapter"):
        load_erasure(untrained, make_eraser(untrained.unet), mode="adapter")
    with pytest.raises(ErasureError, match='load the eraser with `mode="bake"`'):
        Relearning((1,))(sampler, cases)
    assert len(untrained.unet.peft_config) == 1


@pytest.mark.parametrize("steps", [(), (5, 5), (10, 5), (-1, 5)])
def test_relearning_refuses_numbers_of_updates_that_do_not_increase(steps):
    with pytest.raises(ErasureError, match="increasing numbers of 0 or more"):
        Relearning(steps)


@pytest.mark.slow
def test_relearning_on_the_target_brings_an_erased_concept_back(playground, judge, cases):
    eraser = erase(playground, Concept("car"), recipe="closed-form", progress=False, check=False)
    load_erasure(playground, eraser)
    sampler = PipelineSampler(playground, judge, Sampling(steps=10))
    attack = Relearning((0, 60), "target", pictures=8, learning_rate=5e-3)
    curve = run_attack(attack, sampler, cases).curve
    assert curve["0 steps"] == 0
    assert curve["60 steps"] >= 2 / 3
