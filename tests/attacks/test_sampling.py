from dataclasses import replace

import pytest

from diffusers_erase import ErasureError, erasures_disabled, load_erasure
from diffusers_erase.attacks.attack_run import drawn
from diffusers_erase.attacks.sampling import (
    Completion,
    Noise,
    Paraphrases,
    SeedSearch,
    completed,
    equal_budget,
    picture_cost,
)
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.sampler import Sampling


def plain(pictures):
    return [picture.tobytes() for picture in pictures]


@pytest.fixture(params=["bake", "hook", "adapter"])
def erased(request, untrained, make_eraser, recwarn):
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5), mode=request.param)
    return untrained


def test_a_completion_goes_from_the_erased_picture_to_that_of_the_base(sampler, erased, asked):
    sampler = replace(sampler, sampling=Sampling(steps=4, batch=2))
    own = plain(drawn(sampler, asked))
    with erasures_disabled(erased):
        base = plain(drawn(sampler, asked))
    handed = [plain(completed(sampler, asked, k)) for k in range(5)]
    assert handed[0] == own != base == handed[4]
    assert all(pictures not in (own, base) for pictures in handed[1:4])
    assert plain(drawn(sampler, asked)) == own


def test_the_eraser_takes_over_in_half_precision_too(sampler, untrained, make_eraser, asked):
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5))
    sampler = replace(sampler, sampling=Sampling(steps=3, batch=2, precision="bfloat16"))
    own = plain(drawn(sampler, asked))
    with erasures_disabled(untrained):
        base = plain(drawn(sampler, asked))
    assert own != base
    assert plain(completed(sampler, asked, 3)) == base
    assert plain(completed(sampler, asked, 1)) not in (own, base)


def test_a_seed_search_of_one_try_is_the_picture_without_an_attack(sampler, asked):
    found = SeedSearch(1)(sampler, asked)
    shown = sampler.shows(drawn(sampler, asked), ["car"])
    assert [a.before for a in found] == [a.after for a in found] == shown
    assert [(a.found, a.images) for a in found] == [(int(hit), 1) for hit in shown]
    assert {a.evaluations for a in found} == {picture_cost(sampler.sampling)}


def test_a_longer_seed_search_finds_what_a_shorter_one_did(sampler, asked):
    short, long = SeedSearch(2)(sampler, asked), SeedSearch(5)(sampler, asked)
    assert all(b.found >= a.found for a, b in zip(short, long, strict=True))
    assert [a.images for a in long] == [5, 5, 5]


def test_the_equal_budget_is_a_seed_search_that_costs_as_much(sampler, asked):
    attack = Noise((1.0, 1.5), (1.0,))
    found = run_attack(attack, sampler, asked)
    control = equal_budget(found, sampler.sampling)
    assert control == SeedSearch(3)
    assert run_attack(control, sampler, asked).evaluations == found.evaluations


def test_the_curve_says_which_noise_it_was(sampler, asked):
    found = run_attack(Noise((1.0, 1.5), (1.0, 1.02)), sampler, asked)
    assert list(found.curve) == [f"noise {e} x {s}" for e in ("1", "1.5") for s in ("1", "1.02")]
    shares = [round(3 * share) for share in found.curve.values()]
    assert sum(shares) == found.per_image.hits


def test_the_concept_is_called_by_its_other_names(asked):
    attack = Paraphrases(("{}, {}",), Concept("car", synonyms=("automobile",)))
    assert attack.of("a photo of a car", asked) == [
        "a photo of a car, a photo of a car",
        "a photo of an automobile",
    ]


@pytest.mark.parametrize(
    ("attack", "told", "message"),
    [
        (SeedSearch, {"tries": 0}, "1 seed or more"),
        (Completion, {"steps": (-1,)}, "0 steps or more"),
    ],
)
def test_what_cannot_be_tried_is_refused(attack, told, message):
    with pytest.raises(ErasureError, match=message):
        attack(**told)
