"""The preservation pool: prompts that name other words of a vocabulary, the nearest most often."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from diffusers_erase.concepts import TEMPLATES, Vocabulary, filled
from diffusers_erase.training.targets import TargetContext, distances


NEAR_WORDS = 8
"""Number of nearest words that are kept with as much weight as all words together."""

LEAST_DISTANCE = 0.05
"""Smaller distances count as this one, so that a synonym does not take the whole pool."""


def pool(context: TargetContext, vocabulary: Vocabulary | None, count: int) -> list[str]:
    """`count` prompts, divided among the words in proportion to one over their distance."""
    words = vocabulary.others(context.concepts) if vocabulary and count else ()
    if not words:
        return []
    nearness = 1 / distances(context, words).amin(0).clamp(min=LEAST_DISTANCE)
    templates = islice(cycle(TEMPLATES[context.concepts[0].kind]), count)
    taken = apportioned(nearness, count)
    return [filled(template, words[k]) for template, k in zip(templates, taken, strict=True)]


def near_words(context: TargetContext, words: Sequence[str], count: int = NEAR_WORDS) -> list[str]:
    """The `count` words nearest to each concept, each word once."""
    ranked = distances(context, words).argsort(1)[:, :count]
    return list(dict.fromkeys(words[k] for row in ranked.tolist() for k in row))


def apportioned(weights: Tensor, seats: int) -> list[int]:
    """`seats` indices in proportion to their weights (Sainte-Laguë's method)."""
    taken = torch.zeros(len(weights))
    indices = []
    for _ in range(seats):
        k = int((weights / (2 * taken + 1)).argmax())
        taken[k] += 1
        indices.append(k)
    return indices
