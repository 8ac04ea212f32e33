from dataclasses import replace

import pytest

from diffusers_erase import ErasureError, erasures_disabled, load_erasure
from diffusers_erase.attacks.attack_run import draw_cases
from diffusers_erase.attacks.sampling import (
    Completion,
    Noise,
    Paraphrases,
    SeedSearch,
    complete,
    equal_budget,
    picture_cost,
)
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.sampler import Sampling


def pixels(pictures):
    return [picture.tobytes() for picture in pictures]


@pytest.fixture(params=["bake", "hook", "adapter"])
def erased(request, untrained, make_eraser, recwarn):
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5), mode=request.param)
    return untrained


def test_complete_draws_from_the_erased_picture_to_that_of_the_base(sampler, erased, cases):
    sampler = replace(sampler, sampling=Sampling(steps=4, batch=2))
    own = pixels(draw_cases(sampler, cases))
    with erasures_disabled(erased):
        base = pixels(draw_cases(sampler, cases))
    completed = [pixels(complete(sampler, cases, k)) for k in range(5)]
    assert completed[0] == own != base == completed[4]
    assert all(pictures not in (own, base) for pictures in completed[1:4])
    assert pixels(draw_cases(sampler, cases)) == own


def test_complete_brings_the_erasers_back_in_half_precision_too(
    sampler, untrained, make_eraser, cases
):
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5))
    sampler = replace(sampler, sampling=Sampling(steps=3, batch=2, precision="bfloat16"))
    own = pixels(draw_cases(sampler, cases))
    with erasures_disabled(untrained):
        base = pixels(draw_cases(sampler, cases))
    assert own != base
    assert pixels(complete(sampler, cases, 3)) == base
    assert pixels(complete(sampler, cases, 1)) not in (own, base)


def test_seed_search_of_one_try_is_the_picture_without_the_attack(sampler, cases):
    found = SeedSearch(1)(sampler, cases)
    hits = sampler.shows(draw_cases(sampler, cases), ["car"])
    assert [a.before for a in found] == [a.after for a in found] == hits
    assert set(hits) == {True, False}
    assert [(a.found, a.images) for a in found] == [(int(hit), 1) for hit in hits]
    assert {a.evaluations for a in found} == {picture_cost(sampler.sampling)}


def test_seed_search_finds_what_a_shorter_one_finds_and_more(sampler, cases):
    short, long = SeedSearch(2)(sampler, cases), SeedSearch(5)(sampler, cases)
    assert all(b.found >= a.found for a, b in zip(short, long, strict=True))
    assert sum(a.found for a in long) > sum(a.found for a in short)
    assert [a.images for a in long] == [5, 5, 5]


def test_equal_budget_is_a_seed_search_of_the_same_cost(sampler, cases):
    attack = Noise((1.0, 1.5), (1.0,))
    found = run_attack(attack, sampler, cases)
    control = equal_budget(found, sampler.sampling)
    assert control == SeedSearch(3)
    assert run_attack(control, sampler, cases).evaluations == found.evaluations


def test_noise_has_a_point_of_the_curve_per_eta_and_scale(sampler, cases):
    found = run_attack(Noise((1.0, 1.5), (1.0, 1.02)), sampler, cases)
    assert list(found.curve) == [f"noise {e} x {s}" for e in ("1", "1.5") for s in ("1", "1.02")]
    assert sum(round(3 * share) for share in found.curve.values()) == found.per_image.hits > 0


def test_paraphrases_are_sentences_and_synonyms(cases):
    attack = Paraphrases(("{}, {}",), Concept("car", synonyms=("automobile",)))
    assert attack.of("a photo of a car", cases) == [
        "a photo of a car, a photo of a car",
        "a photo of an automobile",
    ]


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (SeedSearch, {"tries": 0}, "1 seed or more"),
        (Completion, {"steps": (-1,)}, "0 steps or more"),
    ],
)
def test_sampling_attacks_refuse_nothing_to_try(attack, options, message):
    with pytest.raises(ErasureError, match=message):
        attack(**options)
