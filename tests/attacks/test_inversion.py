import pytest

from diffusers_erase import ErasureError, load_erasure
from diffusers_erase.attacks.inversion import Inversion, template_of
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("a red car at night", "a red {} at night"),
        ("an automobile", "an {}"),
        ("a car beside a car", "a {} beside a"),
        ("a vehicle on four wheels", "a vehicle on four wheels {}"),
        ("", "{}"),
    ],
)
def test_the_word_stands_where_the_concept_is_first_named(prompt, template):
    assert template_of(prompt, Concept("car", synonyms=("automobile",))) == template


def test_an_inversion_of_nothing_is_refused():
    with pytest.raises(ErasureError, match="1 update, latent each and picture or more"):
        Inversion(steps=0)


@pytest.mark.slow
def test_a_word_brings_back_what_an_eraser_took(playground, judge, asked):
    eraser = erase(playground, Concept("car"), recipe="closed-form", progress=False)
    load_erasure(playground, eraser)
    sampler = PipelineSampler(playground, judge, Sampling(steps=10))
    found = run_attack(Inversion(steps=150, learning_rate=0.1), sampler, asked)
    assert found.pre.hits == 0
    assert found.post.hits >= 2


@pytest.mark.slow
def test_a_model_that_was_never_taught_draws_nothing_by_a_word(untrained, judge, asked):
    sampler = PipelineSampler(untrained, judge, Sampling(steps=10))
    assert run_attack(Inversion(steps=20), sampler, asked).post.hits == 0
