"""What an eraser loses where prompts are encoded only to the end of their words.

python tests/benchmarks/padding.py
python tests/benchmarks/padding.py --positions 77
python tests/benchmarks/padding.py --concepts clock star truck plane palm tulip church dog --n 12

The playground's texts are too short for that saving; here it is forced (`model.LONG_TEXT = 0`,
`edit.MANY = 0`). With more positions, the playground's encoder gets those, each a copy of its last
one: nine in ten states are padding then, as in CLIP. On prompts that no eraser was solved with,
over all their positions:

residual = |A e - (v - e)|^2 / |v - e|^2  of the concept's states e and its target's v
damage = |A e|^2 / |e - e_null|^2  of other objects

With `--n`, the judge's counts of the concept, of its family and of things far from it.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.making.api import erase
from diffusers_erase.models.model import Model
from diffusers_erase.playground import FAMILIES, OBJECTS, load_judge, load_pipeline


UNSEEN = (
    "a drawing of a {} in the rain",
    "a small green {} beside a house",
    "my {}",
    "two {}s at night",
    "an orange {} seen through a window",
)

MEASURES = ("map moved", "residual", "damage", "damage, worst word")


@contextmanager
def whole() -> Iterator[None]:
    """All prompts are encoded to the end of their padding, and all words compared."""
    with patch("diffusers_erase.models.model.LONG_TEXT", 10**9):
        yield


@contextmanager
def cut() -> Iterator[None]:
    """Texts of any length are cut, and of any number of words only the nearest are compared."""
    with (
        patch("diffusers_erase.models.model.LONG_TEXT", 0),
        patch("diffusers_erase.editing.edit.MANY", 0),
        patch("diffusers_erase.editing.shortlist.MANY", 0),
    ):
        yield


def stretched(pipe: Any, positions: int) -> Any:
    """The pipeline with a text encoder of so many positions."""
    encoder = pipe.text_encoder
    embeddings = encoder.text_model.embeddings if hasattr(encoder, "text_model") else None
    embeddings = embeddings or encoder.embeddings
    old = embeddings.position_embedding.weight.data
    new = torch.cat([old, old[-1:].expand(positions - len(old), -1)])
    embeddings.position_embedding = nn.Embedding.from_pretrained(new)
    embeddings.position_ids = torch.arange(positions)[None]
    encoder.config.max_position_embeddings = positions
    pipe.tokenizer.model_max_length = positions
    return pipe


def solved(pipe: Any, name: str, target: str | None = None) -> Any:
    how = {"target": target, "recipe": "closed-form", "check": False, "progress": False}
    return erase(pipe, name, **how)


def lost(model: Model, name: str, target: str, change: Tensor) -> list[float]:
    """Residual, mean damage, and damage of the worst word."""

    def states(words: Sequence[str]) -> Tensor:
        return torch.stack([model.encode([t.format(w) for w in words]) for t in UNSEEN]).double()

    e, v = states([name]), states([target])
    residual = (e @ change.T - (v - e)).square().sum() / (v - e).square().sum()
    others = states([word for word in OBJECTS if word not in (name, target)])
    apart = (others - model.empty_states.double()).square().sum((2, 3))
    damage = ((others @ change.T).square().sum((2, 3)) / apart).mean(0)
    return [residual.item(), damage.mean().item(), damage.max().item()]


def in_states(pipe: Any, names: Sequence[str]) -> None:
    """Print what is lost in text states, at the targets of whole prompts, and these targets."""
    model, rows, same = Model.of(pipe), [], 0
    for name in names:
        with whole():
            one = solved(pipe, name)
        target = one.config.concepts[0].target
        with cut():
            same += solved(pipe, name).config.concepts[0].target == target
            other = solved(pipe, name, target)
        maps = [eraser.text_map.change.double() for eraser in (one, other)]
        moved = [0.0, ((maps[1] - maps[0]).norm() / maps[0].norm()).item()]
        rows.append([[m, *lost(model, name, target, A)] for m, A in zip(moved, maps, strict=True)])
    found = torch.tensor(rows).mean(0).T.tolist()
    print(f"{model.text_length} positions; {same} of {len(names)} targets are the same")
    print("| mean over concepts | whole prompts | cut |\n| --- | ---: | ---: |")
    for measure, row in zip(MEASURES, found, strict=True):
        print(f"| {measure} | {row[0]:.4f} | {row[1]:.4f} |")


def in_pictures(pipe: Any, names: Sequence[str], n: int, steps: int) -> None:
    """Print what the judge counts, each with its own targets."""
    judge, total = load_judge(), {row: [0, 0, 0] for row in ("base", "whole", "cut")}

    def count(words: Sequence[str]) -> int:
        prompts = [f"a photo of a {word}" for word in words]
        pictures = draw(pipe, prompts, steps=steps, seed=list(range(len(words))), batch=24)
        return sum(word in v.labels for word, v in zip(words, judge(pictures), strict=True))

    for name in names:
        family = next(members for members in FAMILIES.values() if name in members)
        near = [word for word in family if word != name]
        far = [word for word in OBJECTS if word not in family]
        asked = [
            [name] * n,
            [near[i % len(near)] for i in range(n)],
            [far[7 * i % len(far)] for i in range(n)],
        ]
        for row, context in (("base", None), ("whole", whole), ("cut", cut)):
            if context is not None:
                with context():
                    eraser = solved(pipe, name)
                pipe.load_erasure(eraser)
            found = [count(words) for words in asked]
            total[row] = [a + b for a, b in zip(total[row], found, strict=True)]
            pipe.unload_erasures()
    print(f"| {len(names) * n} pictures each | base | whole prompts | cut |")
    print("| --- | ---: | ---: | ---: |")
    for k, kind in enumerate(("concept", "its family", "far things")):
        print(f"| {kind} | {' | '.join(str(total[row][k]) for row in total)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=OBJECTS)
    parser.add_argument("--positions", type=int, help="more than the playground's 24")
    parser.add_argument("--n", type=int, default=0, help="pictures of each kind and concept")
    parser.add_argument("--steps", type=int, default=8, help="of the sampler")
    options = parser.parse_args()
    pipe = load_pipeline()
    if options.positions:
        pipe = stretched(pipe, options.positions)
    if options.n:
        in_pictures(pipe, options.concepts, options.n, options.steps)
    else:
        in_states(pipe, options.concepts)


if __name__ == "__main__":
    main()
