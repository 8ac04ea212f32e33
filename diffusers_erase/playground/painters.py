"""Painters turn a drawn 256-pixel canvas into a 64-pixel picture in one style.

Textures repeat every four pixels of the final picture wherever the style allows it, because a
latent of the playground's autoencoder sees four pixels: what it can describe, it can draw.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter


Picture = NDArray[np.floating[Any]]  # H x W x 3 in 0 .. 1
Layer = NDArray[np.floating[Any]]  # H x W in 0 .. 1
Painter = Callable[[Image.Image, np.random.Generator], Picture]

HALF = 128
"""Painters work at twice the final resolution; the last step averages 2 x 2 pixels."""

_Y, _X = np.mgrid[0:HALF, 0:HALF].astype(np.float32)


def _array(canvas: Image.Image) -> Picture:
    return np.asarray(canvas, dtype=np.float32) / 255


def _half(canvas: Image.Image) -> Image.Image:
    return canvas.reduce(2)


def _cloud(rng: np.random.Generator, cells: int) -> Layer:
    """Smooth noise in 0 .. 1 with about `cells` bumps along a side."""
    seed = (rng.random((cells, cells)) * 255).astype(np.uint8)
    smooth = Image.fromarray(seed).resize((HALF, HALF), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / 255


def _edges(canvas: Image.Image) -> Layer:
    """Strength of the outlines, 0 .. 1."""
    a = _array(_half(canvas))
    across = np.abs(a[:, 2:] - a[:, :-2]).max(2)[1:-1]
    down = np.abs(a[2:] - a[:-2]).max(2)[:, 1:-1]
    return np.pad(np.clip(1.3 * (across + down), 0, 1), 1)


def _pure(a: Picture, floor: float = 0.8) -> Picture:
    """Colours with their grey taken out, as bright as they go."""
    high, low = a.max(2, keepdims=True) + 0.05, a.min(2, keepdims=True) * floor
    pure: Picture = np.clip((a - low) / (high - low), 0, 1)
    return pure


def paint_plain(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """The drawing as it is."""
    return _array(_half(canvas))


def paint_dots(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """Discs of slightly wrong colour on cream paper."""
    pitch, cells = 8, HALF // 8 + 1
    shift = rng.uniform(-0.8, 0.8, (2, cells, cells)).astype(np.float32)
    radius = rng.uniform(3.1, 4.2, (cells, cells)).astype(np.float32)
    row, column = (_Y // pitch).astype(int), (_X // pitch).astype(int)
    y = row * pitch + pitch / 2 - 0.5 + shift[0][row, column]
    x = column * pitch + pitch / 2 - 0.5 + shift[1][row, column]
    soft = _array(_half(canvas).filter(ImageFilter.BoxBlur(1)))
    colour = soft[np.clip(y, 0, HALF - 1).astype(int), np.clip(x, 0, HALF - 1).astype(int)]
    colour = colour + rng.uniform(-0.07, 0.07, (cells, cells, 3)).astype(np.float32)[row, column]
    inside = np.clip(radius[row, column] - np.hypot(_X - x, _Y - y) + 0.5, 0, 1)[..., None]
    painted: Picture = inside * colour + (1 - inside) * np.array([0.97, 0.95, 0.9], np.float32)
    return painted


def paint_hatching(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """Diagonal pencil lines on white paper, crossed where it is dark, inked outlines."""
    a = _array(_half(canvas))
    tone = a @ np.array([0.3, 0.59, 0.11], np.float32) - 0.35 * (a.max(2) - a.min(2))
    wobble = 1.2 * _cloud(rng, 6)
    rising = np.sin((_X + _Y) * (2 * np.pi / 8) + wobble) > -0.1
    falling = np.sin((_X - _Y) * (2 * np.pi / 8) + wobble) > 0.3
    lines = ((tone < 0.84) & rising) | ((tone < 0.34) & falling)
    ink = np.maximum(lines * np.float32(0.9), np.clip(_edges(canvas) * 1.1, 0, 1))[..., None]
    painted: Picture = ink * (a * 0.78) + (1 - ink) * np.array([0.98, 0.97, 0.95], np.float32)
    return painted


def paint_mosaic(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """Square tiles, each of one colour, with dark joints."""
    tiles = _array(canvas.reduce(16)) + rng.uniform(-0.08, 0.08, (16, 16, 1)).astype(np.float32)
    wall = np.repeat(np.repeat(np.clip(tiles * 1.04, 0, 1), 8, 0), 8, 1)
    joint = ((_X % 8 < 1.5) | (_Y % 8 < 1.5))[..., None]
    return np.where(joint, np.array([0.26, 0.25, 0.24], np.float32), wall)


def paint_glass(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """A leaded window: diamond panes of differently tinted bright glass, outlines in lead."""
    flat = _array(_half(canvas).filter(ImageFilter.MedianFilter(3)))
    u, v = (_X + _Y) / 48, (_X - _Y) / 48
    pane = np.stack([np.floor(u).astype(int) % 8, np.floor(v).astype(int) % 8])
    tint = rng.uniform(0.78, 1.12, (8, 8, 3)).astype(np.float32)[pane[0], pane[1]]
    glow = 0.62 * _pure(flat, 0.55) + 0.42 * flat
    seams = (u % 1 < 0.08) | (v % 1 < 0.08)
    lead = np.maximum(np.clip(1.5 * _edges(canvas), 0, 1), seams)[..., None]
    painted: Picture = (1 - lead) * glow * tint + lead * np.array([0.07, 0.07, 0.1], np.float32)
    return painted


def paint_swirl(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """Everything flows around three eyes, in visible strokes."""
    dx, dy, phase = np.zeros_like(_X), np.zeros_like(_X), np.zeros_like(_X)
    for _ in range(3):
        x0, y0 = rng.uniform(10, HALF - 10, 2)
        distance = np.hypot(_X - x0, _Y - y0) + 1e-3
        weight, side = np.exp(-((distance / 38) ** 2)), rng.choice([-1.0, 1.0])
        dx += -(_Y - y0) / distance * weight * 4.5 * side
        dy += (_X - x0) / distance * weight * 4.5 * side
        phase += weight * distance * 0.72
    phase += _Y * 0.5 + _X * 0.16 + 2.4 * np.sin(_X / 16 + rng.uniform(0, 6))
    x = np.clip(_X + dx + 1.3 * np.sin(_Y / 6), 0, HALF - 1).astype(int)
    y = np.clip(_Y + dy + 1.3 * np.cos(_X / 6), 0, HALF - 1).astype(int)
    stroke = np.sin(phase)[..., None].astype(np.float32)
    warm, cold = np.array([0.1, 0.09, 0.0], np.float32), np.array([-0.04, -0.02, 0.08], np.float32)
    flowing = _array(_half(canvas))[y, x] * (1 + 0.27 * stroke)
    painted: Picture = flowing + (stroke > 0.5) * warm + (stroke < -0.5) * cold
    return painted


def paint_watercolor(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """Pigment that bleeds into wet paper."""
    half = _half(canvas)
    wet = _array(half.filter(ImageFilter.GaussianBlur(4.4)))
    dry = _array(half.filter(ImageFilter.GaussianBlur(1.5)))
    here = _cloud(rng, 9)[..., None]
    bled = dry * here + wet * (1 - here)
    pigment = (0.5 + 0.5 * _cloud(rng, 7))[..., None]
    painted: Picture = (1 - (1 - bled) * pigment) * 0.92 + 0.07
    return painted


def paint_neon(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """Outlines as glowing tubes in the dark."""
    edges = _edges(canvas)
    glow = Image.fromarray((edges * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    light = np.clip(0.8 * edges + 1.1 * np.asarray(glow, dtype=np.float32) / 255, 0, 1)[..., None]
    colour = _pure(_array(_half(canvas).filter(ImageFilter.MaxFilter(5))))
    return colour * light + 0.15 * _array(_half(canvas)) * np.array([0.6, 0.5, 1.0], np.float32)


def paint_chalk(canvas: Image.Image, rng: np.random.Generator) -> Picture:
    """Pale outlines and loosely rubbed colour on a green board."""
    a = _array(_half(canvas))
    board = np.array([0.13, 0.23, 0.2], np.float32) * (0.85 + 0.3 * _cloud(rng, 5))[..., None]
    rub = np.sin((_X - 2 * _Y) * (2 * np.pi / 16) + 1.5 * _cloud(rng, 8)) > -0.25
    colourful = np.clip((a.max(2) - a.min(2)) * 1.9 - 0.25, 0, 1)
    powder = (colourful * rub * (0.65 + 0.35 * _cloud(rng, 12)))[..., None]
    line = np.clip(_edges(canvas) * 1.2, 0, 1)[..., None]
    drawn = (1 - powder) * board + powder * (0.82 * a + 0.14)
    chalk = 0.72 * np.array([0.95, 0.95, 0.9], np.float32) + 0.22 * a
    painted: Picture = (1 - line) * drawn + line * chalk
    return painted


PAINTERS: dict[str, Painter] = {
    "plain": paint_plain,
    "dots": paint_dots,
    "hatching": paint_hatching,
    "mosaic": paint_mosaic,
    "glass": paint_glass,
    "swirl": paint_swirl,
    "watercolor": paint_watercolor,
    "neon": paint_neon,
    "chalk": paint_chalk,
}
"""Style -> its painter."""


def paint(canvas: Image.Image, style: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The canvas in a style; 64 x 64 x 3, uint8."""
    picture = np.clip(PAINTERS[style](canvas, rng), 0, 1)
    return np.array(Image.fromarray((picture * 255).astype(np.uint8)).reduce(2))
