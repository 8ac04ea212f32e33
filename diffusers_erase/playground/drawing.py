"""Every object and background as a few strokes in unit coordinates."""

import math
import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw


CANVAS, PICTURE_SIZE = 256, 64
"""Pictures are drawn at the first size and reduced to the second by the painters."""

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (38, 34, 40)
GLASS: Colour = (206, 232, 245)
WOOD: Colour = (122, 80, 46)
CREAM: Colour = (246, 242, 230)
LEAF: Colour = (58, 140, 66)
TYRE: Colour = (52, 50, 56)

PALETTE: dict[str, Colour] = {
    "red": (214, 38, 38),
    "orange": (242, 134, 24),
    "yellow": (244, 216, 44),
    "green": (46, 160, 62),
    "cyan": (58, 200, 212),
    "blue": (40, 82, 212),
    "purple": (132, 52, 172),
    "pink": (246, 132, 184),
}

LANDSCAPES: dict[str, tuple[Colour, Colour]] = {
    "studio": ((232, 230, 226), (214, 208, 202)),
    "field": ((160, 208, 244), (126, 192, 98)),
    "night": ((26, 28, 68), (42, 46, 62)),
    "beach": ((190, 226, 240), (236, 212, 152)),
    "snow": ((194, 203, 216), (245, 248, 251)),
    "sunset": ((250, 196, 150), (112, 84, 96)),
}
"""Sky and ground of each background."""

STUDIO_TINTS: tuple[Colour, ...] = (
    (236, 232, 226), (214, 224, 232), (228, 216, 232), (226, 234, 216),
)  # fmt: skip


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """(1 - share) one + share other."""
    r, g, b = (round(a * (1 - share) + c * share) for a, c in zip(one, other, strict=True))
    return (r, g, b)


def jittered(colour: Colour, rng: random.Random, amount: float = 8.0) -> Colour:
    """The colour under slightly different light."""
    light = rng.uniform(0.93, 1.07)
    r, g, b = (min(255, max(0, round(v * light + rng.uniform(-amount, amount)))) for v in colour)
    return (r, g, b)


class Pencil:
    """Strokes in an object's own frame, turned, mirrored and scaled.

    x right, y down, both about -1 .. 1.
    """

    def __init__(
        self,
        canvas: ImageDraw.ImageDraw,
        centre: Point,
        *,
        scale: float,
        turn: float,
        mirrored: bool,
    ) -> None:
        self.canvas, self.centre, self.scale = canvas, centre, scale
        self.cos, self.sin = math.cos(turn), math.sin(turn)
        self.side = -1.0 if mirrored else 1.0

    def place(self, points: Sequence[Point]) -> list[Point]:
        """Own frame to canvas pixels."""
        (cx, cy), s = self.centre, self.scale
        return [
            (
                cx + s * (self.cos * x * self.side - self.sin * y),
                cy + s * (self.sin * x * self.side + self.cos * y),
            )
            for x, y in points
        ]

    def polygon(self, points: Sequence[Point], fill: Colour, outline: bool = True) -> None:
        """A filled polygon, with the ink outline that every object wears."""
        placed = self.place(points)
        self.canvas.polygon(placed, fill=fill)
        if outline:
            width = max(3, round(0.055 * self.scale))
            self.canvas.line([*placed, *placed[:2]], fill=INK, width=width, joint="curve")

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: Colour, outline: bool = True
    ) -> None:
        """An upright rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, outline)

    def disc(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, outline: bool = True
    ) -> None:
        """An ellipse with radii rx, ry."""
        self.polygon(arc((x, y), rx, ry, 0.0, 2 * math.pi), fill, outline)

    def stroke(self, points: Sequence[Point], fill: Colour = INK, width: float = 0.06) -> None:
        """An open line."""
        pixels = max(2, round(width * self.scale))
        self.canvas.line(self.place(points), fill=fill, width=pixels, joint="curve")

    def wheels(self, *wheels: tuple[float, float, float]) -> None:
        """Tyres with hubs at (x, y, radius)."""
        for x, y, radius in wheels:
            self.disc(x, y, radius, radius, TYRE)
            self.disc(x, y, radius * 0.45, radius * 0.45, (196, 196, 200), outline=False)


def arc(
    centre: Point, rx: float, ry: float, start: float, end: float, steps: int = 32
) -> list[Point]:
    """Points on an ellipse from angle `start` to `end` (radians, clockwise on screen)."""
    (x, y), span = centre, end - start
    angles = (start + span * i / steps for i in range(steps + 1))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


class Brush:
    """Colours of a drawing (body, lighter, darker, background), and random numbers."""

    def __init__(self, colour: Colour, behind: Colour, rng: random.Random) -> None:
        self.body = colour
        self.light = mix(colour, (255, 255, 255), 0.55)
        self.dark = mix(colour, (0, 0, 0), 0.35)
        self.behind = behind
        self.rng = rng


Drawing = Callable[[Pencil, Brush], None]


# Round shapes


def draw_circle(p: Pencil, b: Brush) -> None:
    """A ball seen as a disc."""
    p.disc(0, 0, 0.82, 0.82, b.body)
    p.disc(-0.28, -0.32, 0.24, 0.2, b.light, outline=False)


def draw_oval(p: Pencil, b: Brush) -> None:
    """A disc stretched to 3 : 2; next to the circle it is the hardest pair of the world."""
    p.disc(0, 0, 0.95, 0.56, b.body)
    p.disc(-0.38, -0.22, 0.24, 0.13, b.light, outline=False)


def draw_ring(p: Pencil, b: Brush) -> None:
    """A thick band around a hole."""
    p.disc(0, 0, 0.84, 0.84, b.body)
    p.disc(0, 0, 0.46, 0.46, b.behind)


def draw_clock(p: Pencil, b: Brush) -> None:
    """A dial with two hands at a random time."""
    p.disc(0, 0, 0.84, 0.84, b.body)
    p.disc(0, 0, 0.62, 0.62, CREAM)
    long = b.rng.uniform(0, 2 * math.pi)
    short = long + b.rng.uniform(1.2, 5.0)
    p.stroke([(0, 0), (0.5 * math.cos(long), 0.5 * math.sin(long))], width=0.1)
    p.stroke([(0, 0), (0.34 * math.cos(short), 0.34 * math.sin(short))], width=0.13)


def draw_wheel(p: Pencil, b: Brush) -> None:
    """A rim with spokes and a hub."""
    p.disc(0, 0, 0.86, 0.86, b.body)
    p.disc(0, 0, 0.64, 0.64, b.behind)
    start = b.rng.uniform(0, 1)
    for k in range(3):
        x, y = 0.66 * math.cos(start + k * math.pi / 3), 0.66 * math.sin(start + k * math.pi / 3)
        p.stroke([(-x, -y), (x, y)], fill=b.body, width=0.13)
    p.disc(0, 0, 0.2, 0.2, b.body)


# Pointed shapes


def draw_triangle(p: Pencil, b: Brush) -> None:
    """Three corners, point up."""
    p.polygon([(0, -0.85), (0.92, 0.7), (-0.92, 0.7)], b.body)


def draw_star(p: Pencil, b: Brush) -> None:
    """Five rays."""
    radii = [0.95 if i % 2 == 0 else 0.4 for i in range(10)]
    turns = [math.pi * i / 5 for i in range(10)]
    p.polygon(
        [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, turns, strict=True)], b.body
    )


def draw_diamond(p: Pencil, b: Brush) -> None:
    """A tall rhombus."""
    p.polygon([(0, -0.95), (0.66, 0), (0, 0.95), (-0.66, 0)], b.body)


def draw_arrow(p: Pencil, b: Brush) -> None:
    """A block arrow."""
    half = [(-0.9, -0.24), (0.1, -0.24), (0.1, -0.66), (0.95, 0)]
    p.polygon(half + [(x, -y) for x, y in reversed(half[:-1])], b.body)


def draw_cross(p: Pencil, b: Brush) -> None:
    """Two equal bars."""
    a, l = 0.28, 0.88
    quarter = [(a, -l), (a, -a), (l, -a), (l, a), (a, a), (a, l)]
    p.polygon(quarter + [(-x, -y) for x, y in quarter], b.body)


# Vehicles


def draw_car(p: Pencil, b: Brush) -> None:
    """Low, with a cabin in the middle and a bonnet at each end."""
    p.polygon(
        [
            (-0.95, 0.35), (-0.95, -0.02), (-0.58, -0.1), (-0.34, -0.48),
            (0.3, -0.48), (0.58, -0.1), (0.95, 0.02), (0.95, 0.35),
        ],
        b.body,
    )  # fmt: skip
    p.polygon([(-0.45, -0.1), (-0.28, -0.38), (-0.05, -0.38), (-0.05, -0.1)], GLASS)
    p.polygon([(0.07, -0.1), (0.07, -0.38), (0.26, -0.38), (0.43, -0.1)], GLASS)
    p.wheels((-0.52, 0.38, 0.24), (0.52, 0.38, 0.24))


def draw_van(p: Pencil, b: Brush) -> None:
    """A tall closed box with a slanted nose and glass only at the front."""
    p.polygon(
        [(-0.9, 0.38), (-0.9, -0.58), (0.38, -0.58), (0.72, -0.06), (0.94, 0.04), (0.94, 0.38)],
        b.body,
    )
    p.polygon([(0.12, -0.08), (0.12, -0.42), (0.34, -0.42), (0.56, -0.08)], GLASS)
    p.stroke([(-0.02, -0.5), (-0.02, 0.3)], width=0.05)
    p.wheels((-0.5, 0.42, 0.23), (0.54, 0.42, 0.23))


def draw_truck(p: Pencil, b: Brush) -> None:
    """A cargo box behind a separate, darker cab."""
    p.box(-0.95, -0.62, 0.28, 0.3, b.body)
    p.polygon([(0.36, 0.3), (0.36, -0.3), (0.72, -0.3), (0.95, 0), (0.95, 0.3)], b.dark)
    p.polygon([(0.48, -0.02), (0.48, -0.2), (0.68, -0.2), (0.82, -0.02)], GLASS)
    p.wheels((-0.62, 0.42, 0.21), (-0.12, 0.42, 0.21), (0.65, 0.42, 0.21))


def draw_bus(p: Pencil, b: Brush) -> None:
    """A long box with a row of windows."""
    p.box(-0.96, -0.55, 0.96, 0.38, b.body)
    for x in (-0.82, -0.38, 0.06, 0.5):
        p.box(x, -0.4, x + 0.32, -0.06, GLASS)
    p.wheels((-0.55, 0.42, 0.2), (0.55, 0.42, 0.2))


def draw_fire_truck(p: Pencil, b: Brush) -> None:
    """A low truck that carries a raised ladder and a light."""
    p.box(-0.95, -0.12, 0.34, 0.32, b.body)
    p.polygon([(0.38, 0.32), (0.38, -0.42), (0.8, -0.42), (0.95, -0.06), (0.95, 0.32)], b.body)
    p.polygon([(0.5, -0.04), (0.5, -0.3), (0.72, -0.3), (0.82, -0.04)], GLASS)
    p.box(0.46, -0.58, 0.64, -0.44, (70, 130, 240))
    for shift in (0.0, 0.2):
        p.stroke([(-0.95, -0.48 - shift), (0.3, -0.16 - shift)], width=0.07)
    for k in range(5):
        x = -0.86 + 0.26 * k
        y = -0.46 + 0.0667 * k
        p.stroke([(x, y), (x, y - 0.2)], width=0.06)
    p.wheels((-0.6, 0.42, 0.22), (0.6, 0.42, 0.22))


def draw_tractor(p: Pencil, b: Brush) -> None:
    """One big wheel, one small one, a cab over the big one."""
    p.box(-0.1, -0.15, 0.9, 0.32, b.body)
    p.box(-0.72, -0.74, -0.02, 0.3, b.body)
    p.box(-0.58, -0.62, -0.16, -0.2, GLASS)
    p.box(0.5, -0.55, 0.62, -0.15, INK, outline=False)
    p.wheels((-0.42, 0.38, 0.46), (0.66, 0.54, 0.28))


# Craft


def draw_sailboat(p: Pencil, b: Brush) -> None:
    """A hull under two sails."""
    p.polygon([(-0.95, 0.25), (0.95, 0.25), (0.6, 0.72), (-0.6, 0.72)], b.body)
    p.stroke([(0, 0.25), (0, -0.92)], width=0.1)
    p.polygon([(0.07, -0.86), (0.07, 0.12), (0.74, 0.12)], CREAM)
    p.polygon([(-0.07, -0.62), (-0.07, 0.12), (-0.56, 0.12)], b.light)


def draw_submarine(p: Pencil, b: Brush) -> None:
    """A cigar with portholes, a tower and a periscope."""
    p.stroke([(0.0, -0.4), (0.0, -0.82), (0.24, -0.82)], fill=b.dark, width=0.12)
    p.polygon([(-0.26, -0.18), (-0.2, -0.55), (0.26, -0.55), (0.32, -0.18)], b.dark)
    p.polygon([(-0.8, 0.1), (-1.0, -0.2), (-1.0, 0.46)], b.dark)
    p.disc(0, 0.14, 0.9, 0.42, b.body)
    for x in (-0.42, 0.0, 0.42):
        p.disc(x, 0.1, 0.13, 0.13, GLASS)


def draw_plane(p: Pencil, b: Brush) -> None:
    """Seen from the side, nose up a little, with wing and tail."""
    p.polygon([(-0.62, -0.1), (-0.98, -0.62), (-0.72, -0.62), (-0.3, -0.12)], b.dark)
    p.polygon([(0.1, -0.1), (-0.18, -0.7), (0.06, -0.7), (0.46, -0.1)], b.dark)
    nose = arc((0.55, 0.02), 0.42, 0.22, -math.pi / 2, math.pi / 2, 10)
    p.polygon([(-0.92, -0.14), (0.5, -0.2), *nose, (-0.3, 0.24)], b.body)
    p.polygon([(0.2, 0.08), (-0.5, 0.66), (-0.22, 0.66), (0.56, 0.08)], b.light)
    p.polygon([(0.62, -0.16), (0.8, -0.12), (0.88, 0.0), (0.62, 0.0)], GLASS)


def draw_rocket(p: Pencil, b: Brush) -> None:
    """An upright ogive with fins and a flame."""
    p.polygon([(-0.2, 0.6), (0, 1.0), (0.2, 0.6)], (252, 190, 60))
    p.polygon([(-0.3, 0.1), (-0.62, 0.66), (-0.26, 0.6)], b.dark)
    p.polygon([(0.3, 0.1), (0.62, 0.66), (0.26, 0.6)], b.dark)
    p.polygon(
        [
            (0, -0.98), (0.26, -0.6), (0.34, 0.0), (0.26, 0.64),
            (-0.26, 0.64), (-0.34, 0.0), (-0.26, -0.6),
        ],
        b.body,
    )  # fmt: skip
    p.disc(0, -0.3, 0.16, 0.16, GLASS)


def draw_balloon(p: Pencil, b: Brush) -> None:
    """A striped envelope over a basket."""
    p.stroke([(-0.34, 0.14), (-0.15, 0.62)], width=0.05)
    p.stroke([(0.34, 0.14), (0.15, 0.62)], width=0.05)
    envelope = arc((0, -0.32), 0.66, 0.64, math.pi * 0.8, math.pi * 2.2, 28)
    stripe = arc((0, -0.32), 0.26, 0.64, math.pi * 0.95, math.pi * 2.05, 20)
    p.polygon([*envelope, (0.2, 0.34), (-0.2, 0.34)], b.body)
    p.polygon([*stripe, (0.08, 0.34), (-0.08, 0.34)], b.light)
    p.box(-0.2, 0.62, 0.2, 0.94, WOOD)


# Trees


def draw_oak(p: Pencil, b: Brush) -> None:
    """A round cloud of leaves on a short trunk."""
    p.box(-0.14, 0.2, 0.14, 0.92, WOOD)
    for x, y, r in ((-0.38, 0.02, 0.4), (0.38, 0.02, 0.4), (0, -0.42, 0.46)):
        p.disc(x, y, r, r, b.body)
    p.disc(0, -0.1, 0.38, 0.36, b.body, outline=False)


def draw_pine(p: Pencil, b: Brush) -> None:
    """Three stacked skirts."""
    p.box(-0.1, 0.6, 0.1, 0.95, WOOD)
    for y, w in ((0.68, 0.7), (0.2, 0.56), (-0.24, 0.42)):
        p.polygon([(0, y - 0.72), (w, y), (-w, y)], b.body)


def draw_palm(p: Pencil, b: Brush) -> None:
    """A bent bare trunk with a tuft of fronds."""
    p.polygon(
        [(-0.22, 0.94), (-0.1, 0.2), (0.02, -0.34), (0.16, -0.34), (0.08, 0.2), (0.04, 0.94)], WOOD
    )
    for dx, dy in ((-0.95, 0.02), (-0.7, -0.62), (0.02, -0.95), (0.78, -0.62), (0.98, 0.04)):
        tip = (0.08 + 0.88 * dx, -0.36 + 0.5 * dy + 0.1)
        bend = (0.08 + 0.42 * dx, -0.62 + 0.34 * dy)
        below = (0.08 + 0.4 * dx, -0.34 + 0.3 * dy)
        p.polygon([(0.0, -0.4), bend, tip, below, (0.16, -0.3)], b.body)


def draw_poplar(p: Pencil, b: Brush) -> None:
    """A single tall flame of leaves."""
    p.box(-0.09, 0.55, 0.09, 0.95, WOOD)
    base = arc((0, 0.18), 0.36, 0.5, 0.0, math.pi, 16)
    p.polygon([*base, (-0.24, -0.5), (0, -0.98), (0.24, -0.5)], b.body)


def draw_willow(p: Pencil, b: Brush) -> None:
    """A crown whose branches hang to the ground."""
    p.box(-0.12, -0.1, 0.12, 0.92, WOOD)
    for k in range(7):
        x = -0.84 + 0.28 * k
        drop = 0.72 - 0.9 * (1 - abs(x)) * (abs(x) < 0.3)
        one, other = (x * 0.75 - 0.1, -0.4), (x * 0.75 + 0.1, -0.4)
        p.polygon([one, (x - 0.14, 0.2), (x, drop), (x + 0.14, 0.2), other], b.body)
    p.polygon(arc((0, -0.34), 0.8, 0.52, math.pi, 2 * math.pi, 20), b.body)


# Plants


def draw_tulip(p: Pencil, b: Brush) -> None:
    """A closed cup on a stem with one leaf."""
    p.stroke([(0, 0.1), (0, 0.95)], fill=LEAF, width=0.12)
    p.polygon([(0, 0.85), (0.5, 0.2), (0.14, 0.55)], LEAF)
    p.polygon(
        [
            (-0.44, -0.8), (-0.2, -0.46), (0, -0.85), (0.2, -0.46), (0.44, -0.8),
            (0.4, -0.1), (0.18, 0.16), (-0.18, 0.16), (-0.4, -0.1),
        ],
        b.body,
    )  # fmt: skip


def draw_daisy(p: Pencil, b: Brush) -> None:
    """Loose petals around a yellow heart."""
    p.stroke([(0, 0.1), (0, 0.95)], fill=LEAF, width=0.1)
    p.polygon([(0, 0.78), (0.42, 0.42), (0.1, 0.88)], LEAF)
    for k in range(6):
        x, y = 0.42 * math.cos(k * math.pi / 3), 0.42 * math.sin(k * math.pi / 3)
        p.disc(x, -0.3 + y, 0.26, 0.26, b.body)
    p.disc(0, -0.3, 0.24, 0.24, (250, 226, 92))


def draw_sunflower(p: Pencil, b: Brush) -> None:
    """A big dark heart in a ring of pointed rays; the daisy's near neighbour."""
    p.stroke([(0, 0.1), (0, 0.95)], fill=LEAF, width=0.12)
    p.polygon([(0, 0.85), (-0.44, 0.42), (-0.08, 0.62)], LEAF)
    p.polygon([(0, 0.85), (0.44, 0.42), (0.08, 0.62)], LEAF)
    rays = [(0.68 if i % 2 == 0 else 0.44, 2 * math.pi * i / 22) for i in range(22)]
    p.polygon([(r * math.cos(a), -0.3 + r * math.sin(a)) for r, a in rays], b.body)
    p.disc(0, -0.3, 0.36, 0.36, (84, 54, 34))


def draw_cactus(p: Pencil, b: Brush) -> None:
    """A column with two raised arms."""
    p.polygon(
        [(-0.5, -0.3), (-0.72, -0.3), (-0.72, 0.25), (-0.2, 0.25), (-0.2, 0.05), (-0.5, 0.05)],
        b.body,
    )
    p.polygon(
        [(0.5, -0.5), (0.72, -0.5), (0.72, 0.1), (0.2, 0.1), (0.2, -0.1), (0.5, -0.1)], b.body
    )
    top = arc((0, -0.66), 0.23, 0.26, math.pi, 2 * math.pi, 12)
    p.polygon([*top, (0.23, 0.9), (-0.23, 0.9)], b.body)
    p.stroke([(-0.07, -0.7), (-0.07, 0.8)], fill=b.dark, width=0.05)
    p.stroke([(0.08, -0.7), (0.08, 0.8)], fill=b.dark, width=0.05)


def draw_mushroom(p: Pencil, b: Brush) -> None:
    """A dotted cap on a pale stem."""
    p.polygon([(-0.22, 0), (0.22, 0), (0.3, 0.85), (-0.3, 0.85)], (240, 228, 206))
    p.polygon(arc((0, 0.1), 0.86, 0.86, math.pi, 2 * math.pi, 24), b.body)
    for x, y, r in ((-0.42, -0.2, 0.12), (0.05, -0.48, 0.14), (0.46, -0.18, 0.11)):
        p.disc(x, y, r, r, (250, 247, 240), outline=False)


# Buildings


def draw_house(p: Pencil, b: Brush) -> None:
    """Walls, a gable roof, a door between two windows."""
    p.box(-0.65, -0.1, 0.65, 0.8, b.body)
    p.polygon([(-0.86, -0.1), (0, -0.86), (0.86, -0.1)], b.dark)
    p.box(-0.14, 0.3, 0.14, 0.8, WOOD)
    p.box(-0.5, 0.1, -0.26, 0.36, GLASS)
    p.box(0.26, 0.1, 0.5, 0.36, GLASS)


def draw_church(p: Pencil, b: Brush) -> None:
    """A nave with a spire and a cross on it."""
    p.box(-0.1, 0.05, 0.85, 0.85, b.body)
    p.polygon([(-0.1, 0.05), (0.1, -0.3), (0.85, -0.3), (0.95, 0.05)], b.dark)
    p.box(-0.6, -0.25, -0.1, 0.85, b.body)
    p.polygon([(-0.68, -0.25), (-0.35, -0.72), (-0.02, -0.25)], b.dark)
    p.stroke([(-0.35, -0.7), (-0.35, -1.0)], width=0.08)
    p.stroke([(-0.47, -0.88), (-0.23, -0.88)], width=0.08)
    p.box(0.3, 0.35, 0.52, 0.65, GLASS)


def draw_bell_tower(p: Pencil, b: Brush) -> None:
    """The church's tower alone: slender, an open arch with a bell, a pointed roof and its cross."""
    p.box(-0.34, -0.42, 0.34, 0.92, b.body)
    p.polygon([(-0.44, -0.42), (0, -0.82), (0.44, -0.42)], b.dark)
    p.stroke([(0, -0.8), (0, -1.02)], width=0.07)
    p.stroke([(-0.1, -0.93), (0.1, -0.93)], width=0.07)
    arch = arc((0, -0.14), 0.2, 0.18, math.pi, 2 * math.pi, 10)
    p.polygon([(-0.2, 0.12), *arch, (0.2, 0.12)], INK)
    p.polygon([(-0.1, 0.04), (0, -0.2), (0.1, 0.04)], (246, 206, 70), outline=False)
    p.box(-0.11, 0.5, 0.11, 0.92, WOOD)


def draw_castle(p: Pencil, b: Brush) -> None:
    """A gate between two battlemented towers."""
    half = [
        (0.9, 0.8), (0.9, -0.7), (0.72, -0.7), (0.72, -0.5), (0.58, -0.5), (0.58, -0.7),
        (0.4, -0.7), (0.4, -0.05), (0.2, -0.05), (0.2, -0.22), (0.08, -0.22), (0.08, -0.05),
    ]  # fmt: skip
    p.polygon(half + [(-x, y) for x, y in reversed(half)], b.body)
    p.polygon([(-0.2, 0.8), (-0.2, 0.42), (0, 0.24), (0.2, 0.42), (0.2, 0.8)], (72, 52, 42))
    for x in (-0.65, 0.65):
        p.box(x - 0.07, -0.25, x + 0.07, 0.05, INK, outline=False)


def draw_lighthouse(p: Pencil, b: Brush) -> None:
    """A tapering striped tower with a lamp room."""

    def half_width(y: float) -> float:
        return 0.24 + 0.14 * (y + 0.4) / 1.3

    p.polygon([(-0.24, -0.4), (0.24, -0.4), (0.38, 0.9), (-0.38, 0.9)], CREAM)
    for top in (-0.4, 0.12, 0.64):
        low = top + 0.26
        w, v = half_width(top), half_width(low)
        p.polygon([(-w, top), (w, top), (v, low), (-v, low)], b.body)
    p.box(-0.2, -0.68, 0.2, -0.42, (252, 236, 120))
    p.polygon([(-0.32, -0.66), (0, -0.98), (0.32, -0.66)], b.dark)


def draw_tent(p: Pencil, b: Brush) -> None:
    """A triangle of cloth with a dark opening and crossed poles."""
    p.stroke([(0.1, -0.92), (-0.06, -0.6)], width=0.07)
    p.stroke([(-0.1, -0.92), (0.06, -0.6)], width=0.07)
    p.polygon([(0, -0.72), (0.95, 0.7), (-0.95, 0.7)], b.body)
    p.polygon([(0, -0.4), (0.34, 0.7), (-0.34, 0.7)], (60, 46, 42))


# Animals


def _face(p: Pencil, y: float, eye: float = 0.3) -> None:
    for x in (-eye, eye):
        p.disc(x, y, 0.09, 0.11, INK, outline=False)


def draw_cat(p: Pencil, b: Brush) -> None:
    """A head with upright pointed ears and whiskers."""
    p.polygon([(-0.72, -0.1), (-0.72, -0.92), (-0.14, -0.5)], b.body)
    p.polygon([(0.72, -0.1), (0.72, -0.92), (0.14, -0.5)], b.body)
    p.disc(0, 0.12, 0.8, 0.68, b.body)
    _face(p, 0.0)
    p.polygon([(-0.12, 0.24), (0.12, 0.24), (0, 0.38)], (244, 150, 160), outline=False)
    for x in (-1, 1):
        p.stroke([(0.3 * x, 0.34), (0.98 * x, 0.22)], width=0.04)
        p.stroke([(0.3 * x, 0.42), (0.96 * x, 0.5)], width=0.04)


def draw_dog(p: Pencil, b: Brush) -> None:
    """A head with hanging darker ears and a pale snout."""
    p.disc(0, 0.02, 0.66, 0.74, b.body)
    p.polygon([(-0.42, -0.66), (-0.86, -0.5), (-0.92, 0.34), (-0.58, 0.42)], b.dark)
    p.polygon([(0.42, -0.66), (0.86, -0.5), (0.92, 0.34), (0.58, 0.42)], b.dark)
    p.disc(0, 0.42, 0.4, 0.36, b.light)
    _face(p, -0.14, 0.26)
    p.disc(0, 0.26, 0.16, 0.12, INK, outline=False)


def draw_rabbit(p: Pencil, b: Brush) -> None:
    """A small head under two long ears."""
    for x in (-0.3, 0.3):
        p.disc(x, -0.52, 0.19, 0.48, b.body)
        p.disc(x, -0.5, 0.08, 0.32, b.light, outline=False)
    p.disc(0, 0.36, 0.64, 0.56, b.body)
    _face(p, 0.26, 0.24)
    p.disc(0, 0.48, 0.1, 0.08, (244, 150, 160), outline=False)
    p.box(-0.1, 0.62, 0.1, 0.82, (252, 252, 250))


def draw_bird(p: Pencil, b: Brush) -> None:
    """A round body with beak, wing, tail and legs."""
    p.stroke([(-0.05, 0.5), (-0.1, 0.95)], fill=(226, 140, 40), width=0.07)
    p.stroke([(0.2, 0.5), (0.2, 0.95)], fill=(226, 140, 40), width=0.07)
    p.polygon([(-0.5, 0.0), (-1.0, -0.34), (-0.98, 0.14), (-0.5, 0.34)], b.dark)
    p.polygon([(0.72, -0.42), (1.02, -0.24), (0.7, -0.12)], (246, 166, 40))
    p.disc(0, 0.14, 0.66, 0.5, b.body)
    p.disc(0.46, -0.32, 0.36, 0.34, b.body)
    p.disc(0.24, 0.02, 0.34, 0.3, b.body, outline=False)
    p.disc(-0.14, 0.16, 0.36, 0.24, b.dark)
    p.disc(0.54, -0.38, 0.08, 0.09, INK, outline=False)


def draw_fish(p: Pencil, b: Brush) -> None:
    """An almond with a forked tail and a fin."""
    p.polygon([(-0.5, 0), (-0.98, -0.5), (-0.86, 0), (-0.98, 0.5)], b.dark)
    p.polygon([(-0.1, -0.34), (0.1, -0.74), (0.36, -0.3)], b.dark)
    p.disc(0.16, 0, 0.78, 0.46, b.body)
    p.polygon([(0.0, 0.02), (-0.22, 0.26), (0.16, 0.22)], b.light)
    p.disc(0.58, -0.1, 0.11, 0.11, (252, 252, 250), outline=False)
    p.disc(0.6, -0.1, 0.06, 0.06, INK, outline=False)


DRAWINGS: dict[str, Drawing] = {
    name.removeprefix("draw_").replace("_", " "): drawing
    for name, drawing in list(globals().items())
    if name.startswith("draw_")
}
"""Object name -> its drawing."""


def landscape(background: str, rng: random.Random) -> tuple[Image.Image, Colour]:
    """An empty scene and the colour of its sky (what shows through a ring)."""
    sky, ground = (jittered(c, rng, 10) for c in LANDSCAPES[background])
    if background == "studio":
        sky = jittered(rng.choice(STUDIO_TINTS), rng)
        ground = mix(sky, (120, 116, 116), 0.16)
    picture = Image.new("RGB", (CANVAS, CANVAS), sky)
    canvas = ImageDraw.Draw(picture)
    horizon = round(CANVAS * rng.uniform(0.62, 0.74))
    _sky_details(canvas, background, horizon, rng)
    canvas.rectangle([0, horizon, CANVAS, CANVAS], fill=ground)
    return picture, sky


def _sky_details(
    canvas: ImageDraw.ImageDraw, background: str, horizon: int, rng: random.Random
) -> None:
    def blob(x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        canvas.ellipse([x - rx, y - ry, x + rx, y + ry], fill=fill)

    if background in ("night", "snow"):
        fill = (250, 246, 200) if background == "night" else (255, 255, 255)
        for _ in range(15):
            r = rng.uniform(3.0, 5.2)
            blob(rng.uniform(0, CANVAS), rng.uniform(0, horizon), r, r, fill)
    elif background == "beach":
        canvas.rectangle([0, horizon - 24, CANVAS, horizon], fill=jittered((82, 162, 206), rng))
    elif background == "field":
        x, y = rng.uniform(0, CANVAS), rng.uniform(14, 60)
        for k in range(3):
            blob(x + 22 * k, y, 20, 13, (244, 248, 252))
    elif background == "sunset":
        for k in range(3):
            top = round(horizon * (0.45 + 0.2 * k))
            band = mix(LANDSCAPES["sunset"][0], (238, 110, 96), 0.28 * (k + 1))
            canvas.rectangle([0, top, CANVAS, horizon], fill=band)
        blob(rng.uniform(30, CANVAS - 30), horizon, 26, 26, (255, 236, 170))
