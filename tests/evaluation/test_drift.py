import pytest

from diffusers_erase.concepts import Concept
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.drift import base_predictions, drift
from diffusers_erase.linalg.subspace import project_out, row_space
from diffusers_erase.making.api import erase
from diffusers_erase.models.text_states import encode


TARGET = ["a photo of a red car", "a car at night"]
KEEP = ["a photo of a blue cat", "an oak"]


@pytest.fixture(scope="module")
def base(shipped):
    return base_predictions(shipped, TARGET, KEEP, steps=3)


def test_drift_is_zero_without_an_eraser_and_at_strength_zero(playground, base, make_eraser):
    unmoved = {"null": 0.0, "keep": 0.0, "target": 0.0, "cos": pytest.approx(1)}
    assert drift(playground, base).to_dict() == unmoved
    playground.load_erasure(make_eraser(playground.unet), "car", strength=0.0)
    assert drift(playground, base).to_dict() == unmoved
    playground.set_erasure_strength("car", 1.0)
    assert drift(playground, base).target > 1e-4
    with playground.erasures_disabled():
        assert drift(playground, base).to_dict() == unmoved


def test_base_predictions_do_not_depend_on_the_erasers_that_are_loaded(
    playground, base, make_eraser
):
    playground.load_erasure(make_eraser(playground.unet), "car")
    again = base_predictions(playground, TARGET, KEEP, steps=3)
    assert again.z.equal(base.z)
    assert all(again.scores[role].equal(base.scores[role]) for role in base.scores)


def test_drift_grows_with_the_square_of_a_small_strength(playground, base, make_eraser):
    playground.load_erasure(make_eraser(playground.unet), "car", strength=0.02)
    small = drift(playground, base)
    playground.set_erasure_strength("car", 0.04)
    double = drift(playground, base)
    assert double.target / small.target == pytest.approx(4, rel=0.05)
    assert double.keep / small.keep == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("strength", [1.0, 7.0])
def test_drift_of_the_empty_prompt_is_zero_where_the_lora_is_orthogonal_to_it(
    playground, base, make_eraser, strength
):
    Q = row_space(encode(playground, [""]))
    eraser = make_eraser(playground.unet)
    factors = {
        path: (project_out(A.double(), Q).float(), B) for path, (A, B) in eraser.factors.items()
    }
    playground.load_erasure(
        EraserAdapter((Lora(factors),), eraser.config), "car", strength=strength
    )
    moved = drift(playground, base)
    assert moved.null < 1e-10
    assert moved.target > 1e-5


def test_drift_of_an_erased_concept_lowers_the_cosine_of_its_guidance(playground, base):
    words = ("fish", "cat", "oak", "star", "truck")
    eraser = erase(playground, Concept("car"), recipe="closed-form", vocabulary=words, check=False)
    playground.load_erasure(eraser, "car")
    moved = drift(playground, base)
    assert moved.guidance < 0.9
    assert moved.keep < moved.target / 5
    assert moved.null < 1e-10


def test_base_predictions_refuse_a_missing_kind_of_prompts(playground):
    with pytest.raises(ErasureError, match="name both"):
        base_predictions(playground, TARGET, [])
