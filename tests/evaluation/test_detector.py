import math

import pytest
import torch
from PIL import Image

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import (
    Detection,
    FromFunction,
    info_of,
    measurable,
    require_info,
    shows_any,
    verdicts_of,
)
from diffusers_erase.evaluation.metrics import Rate


PICTURES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "black")]


def colour(picture):
    red, _, blue = picture.getpixel((0, 0))
    if red == blue:
        return None
    return ("red", 0.9) if red > blue else "blue"


def test_from_function_gives_labels_and_invalid_verdicts_for_none():
    red, blue, black = verdicts_of(FromFunction(colour, "colours"), PICTURES)
    assert (red.label, red.score, red.labels) == ("red", 0.9, ("red",))
    assert (blue.label, blue.score) == ("blue", 1.0)
    assert not black.valid
    assert black.labels == ()


def test_from_function_has_info_only_with_a_name():
    assert FromFunction(colour, "colours").info == {"name": "colours"}
    assert FromFunction(colour).info == {}


def test_info_of_falls_back_to_the_name_of_the_class():
    assert info_of(FromFunction(colour, "colours")) == {"name": "colours"}
    assert info_of(lambda pictures: [])["name"] == "function"


def test_require_info_refuses_detectors_that_do_not_describe_themselves():
    require_info(FromFunction(colour, "colours"), "Resuming")

    class Silent:
        def __call__(self, pictures):
            return []

    for detector in (FromFunction(colour), lambda pictures: [], Silent()):
        with pytest.raises(ErasureError, match="Resuming needs a detector with `info`"):
            require_info(detector, "Resuming")


def test_playground_judge_is_a_detector(judge, shipped):
    picture = shipped("a photo of a red car", num_inference_steps=10, guidance_scale=5.0).images
    (verdict,) = verdicts_of(judge, picture)
    assert verdict.ranked[0] == verdict.label
    assert len(verdict.ranked) == 5
    assert set(verdict.objects) <= set(verdict.labels)
    assert verdict.colour in verdict.labels
    require_info(judge, "Resuming")


def test_shows_any_compares_whole_labels_in_upper_and_lower_case():
    assert shows_any(["Golf Ball", "tench"], ["golf ball"])
    assert not shows_any(["golf ball"], ["ball"])
    assert not shows_any([], ["ball"])


@pytest.mark.parametrize(
    ("verdicts", "complaint"),
    [
        ([], "returned 0 verdicts for 3 pictures"),
        ([Detection("a", 1.0)] * 4, "returned 4 verdicts"),
        ([Detection("a", math.nan)] * 3, "score of nan"),
        ([Detection("a", 1.5)] * 3, "must lie in 0 .. 1"),
    ],
)
def test_verdicts_of_refuses_a_wrong_number_of_verdicts_and_wrong_scores(verdicts, complaint):
    with pytest.raises(ErasureError, match=complaint):
        verdicts_of(lambda pictures: verdicts, PICTURES)


def test_verdicts_of_names_a_detector_that_fails():
    def broken(pictures):
        raise RuntimeError("out of order\nand more")

    with pytest.raises(ErasureError, match="failed on 3 pictures: RuntimeError: out of order"):
        verdicts_of(broken, PICTURES)


def test_measurable_needs_half_of_the_base_pictures():
    assert measurable(Rate(5, 10))
    assert not measurable(Rate(4, 10))
    assert not measurable(Rate(0, 0))


def test_require_info_refuses_values_that_cannot_be_compared_whole():
    class Tensors(FromFunction):
        info = {"name": "mine", "weights": torch.zeros(2000)}  # noqa: RUF012

    with pytest.raises(ErasureError, match="`info` consists of plain values; that of Tensors"):
        require_info(Tensors(colour), "Resuming")
