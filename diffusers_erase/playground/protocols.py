"""Protocols of the playground: prompts about an erased concept, as plain mappings.

A YAML file of your own has the same keys; `evaluation.suites.Suite.of` reads both.
"""

import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from diffusers_erase.playground.drawing import CANVAS, DRAWINGS, Brush, Pencil
from diffusers_erase.playground.world import (
    ARTISTS,
    BACKGROUND_PHRASES,
    COARSE_STYLES,
    COLOURS,
    COMPANIONS,
    FAMILIES,
    FAMILY_OF,
    OBJECTS,
    STYLE_PHRASES,
    SYNONYMS,
    with_article,
)


PROTOCOLS = ("card", "ripple", "objects")
ON_A_CARD = ("target", "synonyms", "manner", "neighbours", "others", "empty")

Groups = dict[str, dict[str, Any]]


def protocol(name: str, concept: str | Sequence[str], *, pictures: int = 64) -> dict[str, Any]:
    """A protocol of this name for an object or a painter of the world.

    Args:
        name: `card`, what a model card needs; `ripple`, every relation there is; `objects`, those
            that are erased and all the others, as on Imagenette.
        concept: an object, or a painter's name; for `objects` one or more objects.
        pictures: of the target; the other groups have as many, or so many of each word.

    Raises:
        ValueError: the world has no such protocol, object or painter.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"No protocol {name!r}. Known: {', '.join(PROTOCOLS)}.")
    concepts = [concept] if isinstance(concept, str) else list(concept)
    if name == "objects" and set(concepts) <= set(OBJECTS):
        groups = _erased_and_kept(concepts, pictures)
    elif len(concepts) > 1:
        raise ValueError(f"The protocol {name!r} is about one object or painter; got {concepts}.")
    elif (concept := concepts[0]) in OBJECTS:
        groups = _about_object(concept, pictures)
    elif concept in ARTISTS.values():
        groups = _about_painter(concept, pictures)
    else:
        known = ", ".join((*OBJECTS, *ARTISTS.values()))
        raise ValueError(f"The playground has no object or painter {concept!r}. Known: {known}.")
    if name == "card":
        groups = {group: entry for group, entry in groups.items() if group in ON_A_CARD}
    return {"suite": name, "concept": concepts, "groups": groups}


def graph_protocol(*, pictures: int = 8) -> dict[str, Any]:
    """Every object of the world, in its families, in every colour."""
    return {
        "template": [f"a photo of {with_article(c)} {{}}" for c in COLOURS],
        "pictures": pictures,
        "families": {family: list(names) for family, names in FAMILIES.items()},
    }


def _about_object(name: str, pictures: int) -> Groups:
    family = [word for word in FAMILIES[FAMILY_OF[name]] if word != name]
    others = [word for word in OBJECTS if FAMILY_OF[word] != FAMILY_OF[name]]
    partners = [word for pair in COMPANIONS if name in pair for word in pair if word != name]
    beside = others[::3]
    scenes = [
        (f"a photo of {_red(name, i)} and {_red(word, i + 3)}", word)
        for i, word in enumerate(beside)
    ]
    special = [
        *(f"a photo of {_red(name, i)} {p[0]}" for i, p in enumerate(BACKGROUND_PHRASES.values())),
        *(
            f"a painting of {_red(name, i)} in the style of {artist}"
            for i, (style, artist) in enumerate(ARTISTS.items())
            if style not in COARSE_STYLES
        ),
    ]
    lookalikes = [word for word in alike(name) if word not in family][:4]
    groups: Groups = {
        "target": _words("target", [name], pictures),
        "synonyms": _words("paraphrase", SYNONYMS.get(name, ()), pictures, show=name),
        "special": {"relation": "subset", "prompts": special, "show": name, "pictures": pictures},
        "scenes": {
            "relation": "scene",
            "prompts": [text for text, _ in scenes],
            "show": name,
            "pictures": pictures,
        },
        "co-occurring": {"relation": "co-occurring", "prompts": dict(scenes), "pictures": pictures},
        "neighbours": _words("neighbour", family, 16 * len(family)),
        "lookalikes": _words("neighbour", lookalikes, 16 * len(lookalikes)),
        "family": {
            "relation": "superset",
            "prompts": [f"a photo of {with_article(f'{c} {FAMILY_OF[name]}')}" for c in COLOURS],
            "show": family,
            "pictures": pictures,
        },
        "partners": _words("binomial", partners, 16 * len(partners)),
        **_elsewhere(name, others, pictures),
    }
    return {group: entry for group, entry in groups.items() if entry.get("words", ["?"])}


def _erased_and_kept(names: Sequence[str], pictures: int) -> Groups:
    kept = [word for word in OBJECTS if word not in names]
    return {
        "target": _words("target", names, pictures * len(names)),
        "kept": _words("other", kept, max(pictures, 4 * len(kept))),
    }


def _about_painter(name: str, pictures: int) -> Groups:
    style = next(s for s, artist in ARTISTS.items() if artist == name)
    others = [artist for artist in ARTISTS.values() if artist != name]
    things = [f"a painting of {_red(word, i)}" for i, word in enumerate(OBJECTS[::2])]
    subjects = OBJECTS[::2]
    own = [f"{thing} in the style of {name}" for thing in things]
    return {
        "target": {"relation": "target", "prompts": own, "show": name, "pictures": pictures},
        "manner": {
            "relation": "paraphrase",
            "prompts": [
                f"{t} {p}" for t, p in zip(things, STYLE_PHRASES[style] * 99, strict=False)
            ],
            "show": name,
            "pictures": pictures,
        },
        "co-occurring": {
            "relation": "co-occurring",
            "prompts": dict(zip(own, subjects, strict=True)),
            "pictures": pictures,
        },
        "neighbours": {
            "relation": "neighbour",
            "templates": [f"{thing} in the style of {{}}" for thing in things],
            "words": others,
            "pictures": 16 * len(others),
        },
        **_elsewhere(name, OBJECTS, pictures),
    }


def _elsewhere(name: str, others: Sequence[str], pictures: int) -> Groups:
    """Groups unrelated to the concept: other concepts, their colours, the empty prompt."""
    coloured = zip(cycle(COLOURS), others, strict=False)
    return {
        "others": _words("other", others, max(pictures, len(others))),
        "colours": {
            "relation": "attribute",
            "prompts": {f"a photo of {with_article(f'{c} {word}')}": c for c, word in coloured},
            "pictures": pictures,
        },
        "empty": {"relation": "null", "prompts": [""], "show": name, "pictures": pictures},
    }


def _words(
    relation: str, words: Sequence[str], pictures: int, show: str | None = None
) -> dict[str, Any]:
    """A group with every word in every colour; all words in one colour before the next."""
    entry = {
        "relation": relation,
        "words": list(words),
        "templates": [f"a photo of {with_article(c)} {{}}" for c in COLOURS],
        "pictures": pictures,
    }
    return entry if show is None else {**entry, "show": show}


def _red(word: str, i: int) -> str:
    return with_article(f"{COLOURS[i % len(COLOURS)]} {word}")


def alike(name: str) -> list[str]:
    """The other objects, by falling likeness to this one."""
    near = likeness()
    return sorted((word for word in OBJECTS if word != name), key=lambda w: -near[name][w])


@cache
def likeness(size: int = 24) -> Mapping[str, Mapping[str, float]]:
    """Mean over drawings of  Σ min(a, b) / Σ max(a, b)  of the objects' masks, scaled alike.

    1 for an object and itself; how much one silhouette covers the other.
    """
    masks = {name: np.stack([_mask(name, seed, size) for seed in range(4)]) for name in OBJECTS}

    def overlap(a: Any, b: Any) -> float:
        pairs = [(x, y) for x in a for y in b] if a is not b else [(x, x) for x in a]
        shares = [np.minimum(x, y).sum() / np.maximum(x, y).sum() for x, y in pairs]
        return float(np.mean(shares))

    return {
        name: {other: overlap(mask, masks[other]) for other in OBJECTS}
        for name, mask in masks.items()
    }


def _mask(name: str, seed: int, size: int) -> Any:
    """Mask of the drawn object, cut out and scaled to `size` x `size`, 0 .. 1."""
    rng = random.Random(seed)
    white = Image.new("RGB", (CANVAS, CANVAS), "white")
    pencil = Pencil(
        ImageDraw.Draw(white), (CANVAS / 2, CANVAS / 2), scale=CANVAS * 0.35, turn=0, mirrored=False
    )
    DRAWINGS[name](pencil, Brush((30, 30, 30), (255, 255, 255), rng))
    ink = np.asarray(white.convert("L")) < 250
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), bool)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    scaled = Image.fromarray(square.astype(np.uint8) * 255).resize(
        (size, size), Image.Resampling.BOX
    )
    return np.asarray(scaled, dtype=float) / 255
