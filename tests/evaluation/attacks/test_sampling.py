from dataclasses import replace

import pytest

from diffusers_erase import ErasureError, erasures_disabled, load_erasure
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attacks.attempts import recover
from diffusers_erase.evaluation.attacks.record import drawn
from diffusers_erase.evaluation.attacks.sampling import (
    Completion,
    Noise,
    Paraphrases,
    SeedSearch,
    completed,
    equal_budget,
    picture_cost,
)
from diffusers_erase.evaluation.studio import Sampling


def plain(pictures):
    return [picture.tobytes() for picture in pictures]


@pytest.fixture(params=["bake", "hook", "adapter"])
def erased(request, untrained, make_eraser, recwarn):
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5), mode=request.param)
    return untrained


def test_a_completion_goes_from_the_erased_picture_to_that_of_the_base(studio, erased, asked):
    studio = replace(studio, sampling=Sampling(steps=4, batch=2))
    own = plain(drawn(studio, asked))
    with erasures_disabled(erased):
        base = plain(drawn(studio, asked))
    handed = [plain(completed(studio, asked, k)) for k in range(5)]
    assert handed[0] == own != base == handed[4]
    assert all(pictures not in (own, base) for pictures in handed[1:4])
    assert plain(drawn(studio, asked)) == own


def test_the_eraser_takes_over_in_half_precision_too(studio, untrained, make_eraser, asked):
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5))
    studio = replace(studio, sampling=Sampling(steps=3, batch=2, precision="bfloat16"))
    own = plain(drawn(studio, asked))
    with erasures_disabled(untrained):
        base = plain(drawn(studio, asked))
    assert own != base
    assert plain(completed(studio, asked, 3)) == base
    assert plain(completed(studio, asked, 1)) not in (own, base)


def test_a_seed_search_of_one_try_is_the_picture_without_an_attack(studio, asked):
    found = SeedSearch(1)(studio, asked)
    shown = studio.shows(drawn(studio, asked), ["car"])
    assert [a.before for a in found] == [a.after for a in found] == shown
    assert [(a.found, a.images) for a in found] == [(int(hit), 1) for hit in shown]
    assert {a.evaluations for a in found} == {picture_cost(studio.sampling)}


def test_a_longer_seed_search_finds_what_a_shorter_one_did(studio, asked):
    short, long = SeedSearch(2)(studio, asked), SeedSearch(5)(studio, asked)
    assert all(b.found >= a.found for a, b in zip(short, long, strict=True))
    assert [a.images for a in long] == [5, 5, 5]


def test_the_equal_budget_is_a_seed_search_that_costs_as_much(studio, asked):
    attack = Noise((1.0, 1.5), (1.0,))
    found = recover(attack, studio, asked)
    control = equal_budget(found, studio.sampling)
    assert control == SeedSearch(3)
    assert recover(control, studio, asked).evaluations == found.evaluations


def test_the_curve_says_which_noise_it_was(studio, asked):
    found = recover(Noise((1.0, 1.5), (1.0, 1.02)), studio, asked)
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
