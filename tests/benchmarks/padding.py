"""What an eraser loses where prompts are encoded only to the end of their words.

python tests/benchmarks/padding.py

The playground's texts are too short for that saving; here it is forced (`model.LONG_TEXT = 0`,
`edit.MANY = 0`). Movement of the map, targets, and the judge's counts of the concept, of its family
and of things far from it, with and without.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.making.api import erase
from diffusers_erase.playground import FAMILIES, OBJECTS, load_judge, load_pipeline


CONCEPTS = ("clock", "star", "truck", "plane", "palm", "tulip", "church", "dog")


@contextmanager
def forced() -> Iterator[None]:
    """Texts of any length are cut, and of any number of words only the nearest are compared."""
    with (
        patch("diffusers_erase.models.model.LONG_TEXT", 0),
        patch("diffusers_erase.editing.edit.MANY", 0),
        patch("diffusers_erase.editing.shortlist.MANY", 0),
    ):
        yield


def solved(pipe: Any, name: str) -> Any:
    return erase(pipe, name, recipe="closed-form", check=False, progress=False)


def count(pipe: Any, judge: Any, words: list[str], steps: int) -> int:
    """How many of the pictures show their word."""
    prompts = [f"a photo of a {word}" for word in words]
    pictures = draw(pipe, prompts, steps=steps, seed=list(range(len(words))), batch=24)
    return sum(word in v.labels for word, v in zip(words, judge(pictures), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=12, help="pictures of each kind and concept")
    parser.add_argument("--steps", type=int, default=8, help="of the sampler")
    options = parser.parse_args()
    pipe, judge = load_pipeline(), load_judge()
    total = {row: [0, 0, 0] for row in ("base", "whole", "cut")}
    for name in CONCEPTS:
        family = next(names for names in FAMILIES.values() if name in names)
        near = [word for word in family if word != name]
        far = [word for word in OBJECTS if word not in family]
        asked = [
            [name] * options.n,
            [near[i % len(near)] for i in range(options.n)],
            [far[7 * i % len(far)] for i in range(options.n)],
        ]
        whole = solved(pipe, name)
        with forced():
            cut = solved(pipe, name)
        apart = cut.text_map.change - whole.text_map.change
        moved = float(apart.norm() / whole.text_map.change.norm())
        targets = [each.config.concepts[0].target for each in (whole, cut)]
        print(
            f"{name}: the map moves by {moved:.0%}; targets {targets[0]}, {targets[1]}", flush=True
        )
        for row, eraser in (("base", None), ("whole", whole), ("cut", cut)):
            if eraser is not None:
                pipe.load_erasure(eraser)
            found = [count(pipe, judge, words, options.steps) for words in asked]
            total[row] = [a + b for a, b in zip(total[row], found, strict=True)]
            pipe.unload_erasures()
    pictures = len(CONCEPTS) * options.n
    print(
        f"| {pictures} pictures each | base | whole prompts | cut |\n| --- | ---: | ---: | ---: |"
    )
    for k, kind in enumerate(("concept", "its family", "far things")):
        print(f"| {kind} | {' | '.join(str(total[row][k]) for row in total)} |")


if __name__ == "__main__":
    main()
