"""The procedural world: its objects and styles, their frequencies, pictures and captions.

It is made to be awkward in the ways that make erasing hard on real models: families of near
neighbours, synonyms, superset words, names that share a word, two things in one picture, pairs
that usually come together, rare things, and things that live on one background.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from diffusers_erase.playground.drawing import (
    CANVAS,
    DRAWINGS,
    LANDSCAPES,
    PALETTE,
    Brush,
    Pencil,
    jittered,
    landscape,
)
from diffusers_erase.playground.painters import PAINTERS, paint


FAMILIES: dict[str, tuple[str, ...]] = {
    "round shape": ("circle", "oval", "ring", "clock", "wheel"),
    "pointed shape": ("star", "triangle", "diamond", "cross", "arrow"),
    "vehicle": ("car", "truck", "bus", "van", "tractor", "fire truck"),
    "craft": ("sailboat", "plane", "balloon", "rocket", "submarine"),
    "tree": ("oak", "pine", "palm", "willow", "poplar"),
    "plant": ("tulip", "daisy", "mushroom", "cactus", "sunflower"),
    "building": ("house", "church", "castle", "tent", "lighthouse", "bell tower"),
    "animal": ("cat", "dog", "fish", "bird", "rabbit"),
}
"""Superset word -> its members, the most frequent first."""

OBJECTS: tuple[str, ...] = tuple(name for family in FAMILIES.values() for name in family)
FAMILY_OF: dict[str, str] = {name: family for family, names in FAMILIES.items() for name in names}
COLOURS: tuple[str, ...] = tuple(PALETTE)
BACKGROUNDS: tuple[str, ...] = tuple(LANDSCAPES)
STYLES: tuple[str, ...] = tuple(PAINTERS)
"""`plain` first, then the eight painters' styles."""

ARTISTS: dict[str, str] = {
    "dots": "seuratti",
    "hatching": "hatchfield",
    "mosaic": "tessaro",
    "glass": "vitrelli",
    "swirl": "van gyre",
    "watercolor": "aquarelle",
    "neon": "lumina",
    "chalk": "gessari",
}
"""Style -> the name of the (invented) painter who works in it."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc",),
    "oval": ("ellipse",),
    "ring": ("hoop",),
    "diamond": ("rhombus",),
    "car": ("automobile", "sedan"),
    "truck": ("lorry",),
    "bus": ("coach",),
    "fire truck": ("fire engine",),
    "sailboat": ("yacht",),
    "plane": ("airplane",),
    "pine": ("fir",),
    "mushroom": ("toadstool",),
    "house": ("cottage",),
    "castle": ("fortress",),
    "lighthouse": ("beacon",),
    "bell tower": ("belfry",),
    "cat": ("kitten",),
    "dog": ("puppy",),
    "rabbit": ("bunny",),
}
"""Object -> other names that mean the same; about one caption in five uses one."""

COMPANIONS: tuple[tuple[str, str], ...] = (
    ("lighthouse", "sailboat"),
    ("house", "oak"),
    ("church", "willow"),
    ("tent", "pine"),
    ("dog", "circle"),
    ("rabbit", "daisy"),
    ("bus", "clock"),
    ("tractor", "sunflower"),
    ("palm", "fish"),
    ("castle", "diamond"),
)
"""Pairs that make up most of the two-object scenes."""

HABITATS: dict[str, tuple[str, float]] = {
    "sailboat": ("beach", 0.8),
    "submarine": ("beach", 0.7),
    "palm": ("beach", 0.7),
    "lighthouse": ("beach", 0.6),
    "rocket": ("night", 0.75),
    "star": ("night", 0.6),
    "pine": ("snow", 0.6),
    "balloon": ("sunset", 0.6),
    "sunflower": ("field", 0.7),
    "tractor": ("field", 0.7),
}
"""Object -> the background it is tied to, and the share of its scenes that lie there."""

OBJECT_FREQUENCY: dict[str, float] = {
    name: (1.0, 0.85, 0.7, 0.55, 0.45, 0.4)[rank]
    for names in FAMILIES.values()
    for rank, name in enumerate(names)
}
STYLE_FREQUENCY: dict[str, float] = {
    "plain": 4.0,
    **dict(zip(ARTISTS, (1.0, 1.0, 0.9, 0.8, 1.0, 0.7, 0.6, 0.6), strict=True)),
}

COARSE_STYLES = ("dots", "mosaic")
"""Their strokes are too big for the small things of a two-object scene; they never paint one."""

STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "dots": ("in pointillism", "in dots"),
    "hatching": ("in pencil hatching", "as a sketch"),
    "mosaic": ("as a mosaic", "in mosaic tiles"),
    "glass": ("as stained glass", "on a glass window"),
    "swirl": ("in swirling strokes", "in swirls"),
    "watercolor": ("in watercolor", "in soft watercolor"),
    "neon": ("in neon lights", "as a neon sign"),
    "chalk": ("in chalk", "as a chalk drawing"),
}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "studio": ("in a studio", "on a plain background"),
    "field": ("in a field", "on the grass"),
    "night": ("at night", "under the stars"),
    "beach": ("on the beach", "by the sea"),
    "snow": ("in the snow", "in winter"),
    "sunset": ("at sunset", "in the evening"),
}
OPENINGS: dict[bool, tuple[str, ...]] = {
    False: ("a photo of", "a picture of", "an image of", ""),
    True: ("a painting of", "an artwork of", "a picture of", ""),
}
"""Beginnings of captions, for plain (False) and painted (True) pictures."""

TWO_OBJECT_SHARE, COMPANION_SHARE = 0.3, 0.55
SYNONYM_SHARE, SUPERSET_SHARE, COLOUR_SHARE, BACKGROUND_SHARE = 0.2, 0.04, 0.75, 0.5
ARTIST_SHARE, STYLE_ONLY_SHARE = 0.75, 0.04


@dataclass(frozen=True)
class Thing:
    """One object in one colour."""

    object: str
    colour: str = "red"

    def __post_init__(self) -> None:
        _check("object", self.object, OBJECTS)
        _check("colour", self.colour, COLOURS)


@dataclass(frozen=True)
class Scene:
    """One or two things on a background, in a style."""

    things: tuple[Thing, ...]
    style: str = "plain"
    background: str = "studio"

    def __post_init__(self) -> None:
        if not 1 <= len(self.things) <= 2:
            raise ValueError(f"A scene holds one or two things; got {len(self.things)}.")
        _check("style", self.style, STYLES)
        _check("background", self.background, BACKGROUNDS)


def _check(kind: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"The playground has no {kind} {value!r}. Known: {', '.join(known)}.")


def sample_scene(rng: random.Random) -> Scene:
    """Draw a scene by its frequency in the world: long tails, companions, habitats."""
    first = _pick(OBJECT_FREQUENCY, rng)
    names = [first]
    if rng.random() < TWO_OBJECT_SHARE:
        if rng.random() < COMPANION_SHARE:
            names = list(rng.choice(COMPANIONS))
        else:
            second = _pick(OBJECT_FREQUENCY, rng)
            names = [first] if second == first else [first, second]
        rng.shuffle(names)
    home, share = HABITATS.get(names[0], ("studio", 0.0))
    background = home if rng.random() < share else rng.choice(BACKGROUNDS)
    style = _pick(STYLE_FREQUENCY, rng)
    if len(names) == 2 and style in COARSE_STYLES:
        style = "plain"
    return Scene(tuple(Thing(name, rng.choice(COLOURS)) for name in names), style, background)


def _pick(frequency: dict[str, float], rng: random.Random) -> str:
    return rng.choices(tuple(frequency), tuple(frequency.values()))[0]


def render(scene: Scene, seed: int) -> NDArray[np.uint8]:
    """The picture of a scene, 64 x 64 x 3 uint8.

    The seed decides place, size, tilt, light and brush strokes.
    """
    rng = random.Random(seed)
    picture, behind = landscape(scene.background, rng)
    canvas = ImageDraw.Draw(picture)
    for thing, (x, y, scale) in zip(scene.things, _layout(len(scene.things), rng), strict=True):
        pencil = Pencil(
            canvas,
            (x * CANVAS, y * CANVAS),
            scale=scale * CANVAS / 2,
            turn=rng.uniform(-0.12, 0.12),
            mirrored=rng.random() < 0.5,
        )
        DRAWINGS[thing.object](pencil, Brush(jittered(PALETTE[thing.colour], rng), behind, rng))
    return paint(picture, scene.style, np.random.default_rng(seed))


def _layout(count: int, rng: random.Random) -> Iterator[tuple[float, float, float]]:
    """Centre (shares of the canvas) and half-size of each thing."""
    if count == 1:
        yield 0.5 + rng.uniform(-0.11, 0.11), 0.5 + rng.uniform(-0.05, 0.11), rng.uniform(0.6, 0.8)
        return
    for x in (0.26, 0.74):
        yield x + rng.uniform(-0.02, 0.02), 0.55 + rng.uniform(-0.12, 0.12), rng.uniform(0.43, 0.5)


def captions(scene: Scene, *, seed: int = 0, count: int = 4) -> list[str]:
    """`count` captions of the scene, with synonyms, omissions and superset words."""
    rng = random.Random(f"{seed} {scene}")
    return [_caption(scene, rng) for _ in range(count)]


def _caption(scene: Scene, rng: random.Random) -> str:
    painted = scene.style != "plain"
    if painted and rng.random() < STYLE_ONLY_SHARE:
        return f"{rng.choice(('a painting', 'an artwork'))} {_style_phrase(scene.style, rng)}"
    things = list(scene.things)
    rng.shuffle(things)
    opening = rng.choice(OPENINGS[painted])
    parts = [opening, " and ".join(_thing_phrase(thing, rng) for thing in things)]
    if painted:
        parts.append(_style_phrase(scene.style, rng))
    if rng.random() < BACKGROUND_SHARE:
        parts.append(rng.choice(BACKGROUND_PHRASES[scene.background]))
    return " ".join(part for part in parts if part)


def _thing_phrase(thing: Thing, rng: random.Random) -> str:
    name, dice = thing.object, rng.random()
    if dice < SUPERSET_SHARE:
        name = FAMILY_OF[name]
    elif dice < SUPERSET_SHARE + SYNONYM_SHARE:
        name = rng.choice(SYNONYMS.get(name, (name,)))
    return with_article(f"{thing.colour} {name}" if rng.random() < COLOUR_SHARE else name)


def _style_phrase(style: str, rng: random.Random) -> str:
    if rng.random() < ARTIST_SHARE:
        return f"{rng.choice(('in the style of', 'in the style of', 'by'))} {ARTISTS[style]}"
    return rng.choice(STYLE_PHRASES[style])


def with_article(phrase: str) -> str:
    """`a` or `an` before the phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def prompt(scene: Scene) -> str:
    """The plainest full caption.

    `a photo of a red car`, `a painting of a red car in the style of van gyre`; the background is
    left to chance, as the judge's tables leave it.
    """
    things = " and ".join(with_article(f"{t.colour} {t.object}") for t in scene.things)
    if scene.style == "plain":
        return f"a photo of {things}"
    return f"a painting of {things} in the style of {ARTISTS[scene.style]}"


def words() -> tuple[str, ...]:
    """Every word of the world, sorted; each is one token of the playground's tokenizer."""
    used: list[str] = [
        *OBJECTS,
        *FAMILIES,
        *COLOURS,
        *ARTISTS.values(),
        *STYLES,
        *BACKGROUNDS,
    ]
    groups = (SYNONYMS, STYLE_PHRASES, BACKGROUND_PHRASES, OPENINGS)
    used += [phrase for group in groups for phrases in group.values() for phrase in phrases]
    used += ["in the style of", "by", "a painting", "an artwork", "and"]
    return tuple(sorted({word for phrase in used for word in phrase.split()}))
