import pytest

from diffusers_erase.concepts import Concept
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.drift import bank, drift
from diffusers_erase.linalg.subspace import free, row_space
from diffusers_erase.making.api import erase
from diffusers_erase.models.text_states import encode


TARGET = ["a photo of a red car", "a car at night"]
KEEP = ["a photo of a blue cat", "an oak"]


@pytest.fixture
def known(playground):
    return bank(playground, TARGET, KEEP, steps=3)


def test_nothing_drifts_without_an_eraser_or_with_one_at_rest(playground, known, make_eraser):
    unmoved = {"null": 0.0, "keep": 0.0, "target": 0.0, "cos": pytest.approx(1)}
    assert drift(playground, known).plain() == unmoved
    playground.load_erasure(make_eraser(playground.unet), "car", strength=0.0)
    assert drift(playground, known).plain() == unmoved
    playground.set_erasure_strength("car", 1.0)
    assert drift(playground, known).target > 1e-4
    with playground.erasures_disabled():
        assert drift(playground, known).plain() == unmoved


def test_the_bank_is_of_the_base_whatever_is_loaded(playground, known, make_eraser):
    playground.load_erasure(make_eraser(playground.unet), "car")
    again = bank(playground, TARGET, KEEP, steps=3)
    assert again.z.equal(known.z)
    assert all(again.scores[role].equal(known.scores[role]) for role in known.scores)


def test_drift_grows_with_the_square_of_a_small_strength(playground, known, make_eraser):
    playground.load_erasure(make_eraser(playground.unet), "car", strength=0.02)
    small = drift(playground, known)
    playground.set_erasure_strength("car", 0.04)
    double = drift(playground, known)
    assert double.target / small.target == pytest.approx(4, rel=0.05)
    assert double.keep / small.keep == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("strength", [1.0, 7.0])
def test_what_does_not_see_the_empty_prompt_leaves_it_alone(
    playground, known, make_eraser, strength
):
    Q = row_space(encode(playground, [""]))
    eraser = make_eraser(playground.unet)
    factors = {path: (free(A.double(), Q).float(), B) for path, (A, B) in eraser.factors.items()}
    playground.load_erasure(EraserAdapter(factors, eraser.config), "car", strength=strength)
    moved = drift(playground, known)
    assert moved.null < 1e-10
    assert moved.target > 1e-5


def test_an_erased_concept_is_no_longer_asked_for(playground, known):
    words = ("fish", "cat", "oak", "star", "truck")
    eraser = erase(playground, Concept("car"), recipe="closed-form", vocabulary=words)
    playground.load_erasure(eraser, "car")
    moved = drift(playground, known)
    assert moved.guidance < 0.9
    assert moved.keep < moved.target / 5
    assert moved.null < 1e-10


def test_both_kinds_of_prompts_are_needed(playground):
    with pytest.raises(ErasureError, match="name both"):
        bank(playground, TARGET, [])
