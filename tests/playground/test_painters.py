import itertools
import random

import numpy as np
import pytest
from PIL import ImageDraw

from diffusers_erase.playground import STYLES
from diffusers_erase.playground.drawing import DRAWINGS, PALETTE, Brush, Pencil, landscape
from diffusers_erase.playground.painters import HALF, PAINTERS, paint


BY_THE_RULER = {"plain", "neon"}
"""Styles whose strokes leave nothing to chance."""


@pytest.fixture(scope="module")
def canvas():
    picture, behind = landscape("field", random.Random(0))
    pencil = Pencil(ImageDraw.Draw(picture), (128, 136), scale=90, turn=0.05, mirrored=False)
    DRAWINGS["car"](pencil, Brush(PALETTE["red"], behind, random.Random(0)))
    return picture


def painted(canvas, style, seed=0):
    return paint(canvas, style, np.random.default_rng(seed))


def difference(one, other):
    return np.abs(one.astype(float) - other).mean()


def test_every_style_has_a_painter():
    assert tuple(PAINTERS) == STYLES


@pytest.mark.parametrize("style", STYLES)
def test_pictures_are_64_by_64_bytes(canvas, style):
    before = canvas.tobytes()
    picture = painted(canvas, style)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10
    assert canvas.tobytes() == before


@pytest.mark.parametrize("style", STYLES)
def test_painters_work_at_twice_the_size(canvas, style):
    assert PAINTERS[style](canvas, np.random.default_rng(0)).shape == (HALF, HALF, 3)


def test_all_styles_look_different(canvas):
    pictures = {style: painted(canvas, style) for style in STYLES}
    for one, other in itertools.combinations(STYLES, 2):
        assert difference(pictures[one], pictures[other]) > 15, (one, other)


def test_plain_only_reduces(canvas):
    reduced = np.asarray(canvas.reduce(4)).astype(int)
    assert np.abs(painted(canvas, "plain") - reduced).max() <= 2


@pytest.mark.parametrize("style", STYLES)
def test_paint_is_determined_by_its_seed(canvas, style):
    picture = painted(canvas, style)
    assert np.array_equal(picture, painted(canvas, style))
    again = painted(canvas, style, seed=1)
    assert np.array_equal(picture, again) == (style in BY_THE_RULER)
