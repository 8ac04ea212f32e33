import math

import pytest
from PIL import Image

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detectors import (
    Detection,
    FromFunction,
    looked,
    measurable,
    told_of,
)
from diffusers_erase.evaluation.metrics import Rate


PICTURES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "black")]


def colour(picture):
    red, _, blue = picture.getpixel((0, 0))
    if red == blue:
        return None
    return ("red", 0.9) if red > blue else "blue"


def test_a_function_is_a_detector_and_what_shows_nothing_is_no_label():
    red, blue, black = looked(FromFunction(colour, "colours"), PICTURES)
    assert (red.label, red.score, red.labels) == ("red", 0.9, ("red",))
    assert (blue.label, blue.score) == ("blue", 1.0)
    assert not black.valid
    assert black.labels == ()
    assert told_of(FromFunction(colour, "colours"))["name"] == "colours"


def test_the_playgrounds_judge_is_a_detector(judge, shipped):
    picture = shipped("a photo of a red car", num_inference_steps=10, guidance_scale=5.0).images
    (verdict,) = looked(judge, picture)
    assert verdict.ranked[0] == verdict.label
    assert len(verdict.ranked) == 5
    assert set(verdict.objects) <= set(verdict.labels)
    assert verdict.colour in verdict.labels


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ([], "shown 3 pictures and said 0 things"),
        ([Detection("a", 1.0)] * 4, "said 4 things"),
        ([Detection("a", math.nan)] * 3, "score of nan"),
        ([Detection("a", 1.5)] * 3, "a share from 0 to 1"),
    ],
)
def test_a_detector_that_says_too_much_or_no_number_is_refused(said, complaint):
    with pytest.raises(ErasureError, match=complaint):
        looked(lambda pictures: said, PICTURES)


def test_a_detector_that_fails_is_named():
    def broken(pictures):
        raise RuntimeError("out of order\nand more")

    with pytest.raises(ErasureError, match="failed on 3 pictures: RuntimeError: out of order"):
        looked(broken, PICTURES)


def test_what_the_base_is_seldom_seen_to_draw_is_not_measurable():
    assert measurable(Rate(5, 10))
    assert not measurable(Rate(4, 10))
    assert not measurable(Rate(0, 0))
