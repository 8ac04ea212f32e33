import itertools
import math
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffusers_erase.playground import COLOURS, FAMILIES, OBJECTS, Scene, Thing, render
from diffusers_erase.playground.drawing import (
    CANVAS,
    DRAWINGS,
    LANDSCAPES,
    PALETTE,
    Brush,
    Pencil,
    jittered,
    landscape,
    mix,
)


POINTS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-0.3, 0.8), (0.9, -0.4)]


def pencil(**changes):
    canvas = ImageDraw.Draw(Image.new("RGB", (CANVAS, CANVAS)))
    how = {"scale": 80.0, "turn": 0.1, "mirrored": False} | changes
    return Pencil(canvas, (120.0, 140.0), **how)


def difference(one, other, seed):
    pictures = (render(Scene((Thing(name),)), seed).astype(float) for name in (one, other))
    return np.abs(np.subtract(*pictures)).mean()


def drawn(name, seed=0):
    """The bare drawing, white behind."""
    picture = Image.new("RGB", (CANVAS, CANVAS), (255, 255, 255))
    at = Pencil(ImageDraw.Draw(picture), (128, 128), scale=100, turn=0.0, mirrored=False)
    DRAWINGS[name](at, Brush(PALETTE["red"], (255, 255, 255), random.Random(seed)))
    return np.asarray(picture)


def test_objects_are_what_is_drawn():
    assert set(DRAWINGS) == set(OBJECTS)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_wears_its_colour_and_stays_on_the_canvas(name):
    picture = drawn(name)
    assert (picture == PALETTE["red"]).all(2).mean() > 0.03
    frame = np.ones((CANVAS, CANVAS), bool)
    frame[16:-16, 16:-16] = False
    assert (picture[frame] == 255).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_near_neighbours_look_different(family):
    for one, other in itertools.combinations(FAMILIES[family], 2):
        assert min(difference(one, other, seed) for seed in range(3)) > 8, (one, other)
    assert difference(one, one, 0) == 0


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("name", ["circle", "triangle", "diamond"])
def test_drawings_have_the_colour_they_are_given(name, colour):
    for seed in range(4):
        middle = np.median(render(Scene((Thing(name, colour),)), seed)[30:38, 30:38], (0, 1))
        distance = {c: float(np.linalg.norm(middle - PALETTE[c])) for c in COLOURS}
        assert min(distance, key=distance.get) == colour
        assert distance[colour] < 40


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turn", [0.0, 0.1, -2.0])
def test_placing_is_a_similarity(turn, mirrored):
    p = pencil(turn=turn, mirrored=mirrored)
    placed = p.place(POINTS)
    assert placed[0] == pytest.approx(p.centre)
    for (a, b), (c, d) in zip(
        itertools.combinations(POINTS, 2), itertools.combinations(placed, 2), strict=True
    ):
        assert math.dist(c, d) == pytest.approx(80 * math.dist(a, b))
    (x, y), (right_x, right_y), (down_x, down_y) = placed[:3]
    area = (right_x - x) * (down_y - y) - (right_y - y) * (down_x - x)
    assert area == pytest.approx(-(80**2) if mirrored else 80**2)


def test_turn_and_mirror_do_something():
    straight = pencil(turn=0.0)
    assert straight.place([(1, 0)])[0] == pytest.approx((200, 140))
    assert pencil(turn=0.0, mirrored=True).place([(1, 0)])[0] == pytest.approx((40, 140))
    assert pencil(turn=math.pi / 2).place([(1, 0)])[0] == pytest.approx((120, 220))


def test_mixing_starts_at_one_colour_and_ends_at_the_other():
    red, blue = PALETTE["red"], PALETTE["blue"]
    assert mix(red, blue, 0) == red
    assert mix(red, blue, 1) == blue
    assert mix((0, 0, 0), (100, 200, 50), 0.5) == (50, 100, 25)


@pytest.mark.parametrize("colour", PALETTE.values())
def test_light_changes_a_colour_a_little(colour):
    seen = [jittered(colour, random.Random(seed)) for seed in range(50)]
    assert len(set(seen)) > 25
    assert all(0 <= value <= 255 for other in seen for value in other)
    assert max(abs(a - b) for other in seen for a, b in zip(colour, other, strict=True)) <= 26


@pytest.mark.parametrize("background", LANDSCAPES)
def test_landscape_is_sky_above_ground(background):
    picture, sky = landscape(background, random.Random(0))
    pixels = np.asarray(picture)
    assert pixels.shape == (CANVAS, CANVAS, 3)
    ground = pixels[-1, 0]
    assert (pixels[-CANVAS // 5 :] == ground).all()
    assert (pixels[: CANVAS // 4] == sky).all(2).mean() > 0.5
    assert tuple(ground) != sky
