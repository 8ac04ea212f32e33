"""The preservation pool: prompts that name other words of a vocabulary, the nearest most often."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from diffusers_erase.concepts import TEMPLATES, Kind, Vocabulary, filled, scenes
from diffusers_erase.concepts.candidates import (
    comparable,
    is_kept,
    kind_beside,
    parts_kept,
    unnamed,
)
from diffusers_erase.concepts.concept import Concept
from diffusers_erase.training.targets import TargetContext, distances


NEAR_WORDS = 8
"""Number of nearest words that are kept with as much weight as all words together."""

SCENE_EVERY = 4
"""One prompt in so many names two things in one picture."""

LEAST_DISTANCE = 0.05
"""Smaller distances count as this one, so that a synonym does not take the whole pool."""


def pool(context: TargetContext, vocabulary: Vocabulary | None, count: int) -> list[str]:
    """`count` prompts, divided among the words in proportion to one over their distance.

    None names an erased concept; each word stands in prompts of its own kind, some of them with
    another word. The parts of compounds have half of the pool, or all without a vocabulary.
    """
    erased = context.concepts
    words = vocabulary.others(erased) if vocabulary and count else ()
    parts = parts_kept(erased)
    found = list(islice(cycle(parts), count // 2 if words else count)) if parts else []
    if not words:
        return found
    apart = distances(context, words)
    taken = apportioned(1 / apart.amin(0).clamp(min=LEAST_DISTANCE), count - len(found))
    kinds = [kind_beside(words[k], erased[int(apart[:, k].argmin())].kind) for k in taken]
    return found + _prompts([words[k] for k in taken], kinds, words, erased)


def _prompts(
    taken: Sequence[str], kinds: Sequence[Kind], words: Sequence[str], erased: Sequence[Concept]
) -> list[str]:
    """A prompt for each word taken, in templates of its kind by turns."""
    turns: dict[Kind, Iterator[str]] = {kind: cycle(TEMPLATES[kind]) for kind in kinds}
    others = [word for word in words if kind_beside(word, "object") == "object"]
    found = []
    for i, (word, kind) in enumerate(zip(taken, kinds, strict=True)):
        if i % SCENE_EVERY == SCENE_EVERY - 1:
            texts = scenes([word], kind, others, count=len(TEMPLATES["place"]))
            turned = (texts[(i // SCENE_EVERY + k) % len(texts)] for k in range(len(texts)))
            allowed = (t for t in turned if is_kept(t, word, erased))
            if scene := next(allowed, None):
                found.append(scene)
                continue
        templates = islice(turns[kind], len(TEMPLATES[kind]))
        pairs = ((template, word) for template in templates)
        found.append(next(unnamed(pairs, erased), filled("{}", word)))
    return found


def near_words(context: TargetContext, words: Sequence[str]) -> list[dict[str, float]]:
    """For each concept, the words comparable with it -> their distances, the nearest first."""
    if not words:
        return [{} for _ in context.concepts]
    found = []
    for concept, row in zip(context.concepts, distances(context, words).tolist(), strict=True):
        apart = dict(zip(words, row, strict=True))
        found.append(
            {w: apart[w] for w in sorted(comparable(concept, words), key=apart.__getitem__)}
        )
    return found


def apportioned(weights: Tensor, seats: int) -> list[int]:
    """`seats` indices in proportion to their weights (Sainte-Laguë's method)."""
    taken = torch.zeros(len(weights))
    indices = []
    for _ in range(seats):
        k = int((weights / (2 * taken + 1)).argmax())
        taken[k] += 1
        indices.append(k)
    return indices
