"""What must survive: prompts about the other words of a vocabulary, most about the nearest."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.training.targets import Stage, distances


SPARED_IN = 8
"""Prompts in which each word of the vocabulary is spared by the closed-form edit."""

NEAREST = 0.05
"""Words nearer than this count as so near: a synonym must not take all seats."""


def pool(stage: Stage, vocabulary: Vocabulary | None, count: int) -> list[str]:
    """`count` prompts for training, shared out among the words by one over their distance."""
    words = vocabulary.others(stage.concepts) if vocabulary and count else ()
    if not words:
        return []
    nearness = 1 / distances(stage, words).amin(0).clamp(min=NEAREST)
    stand_in = Concept(words[0], stage.concepts[0].kind)
    templates = islice(cycle(stand_in.written()), count)
    taken = apportioned(nearness, count)
    return [stand_in.replaced(t, words[k]) for t, k in zip(templates, taken, strict=True)]


def spared(vocabulary: Vocabulary | None, erased: Sequence[Concept]) -> list[str]:
    """Every word that is not erased in a few prompts: text alone, which costs next to nothing."""
    words = vocabulary.others(erased) if vocabulary else ()
    stand_in = Concept("thing", erased[0].kind)
    return [stand_in.replaced(t, word) for word in words for t in stand_in.written(SPARED_IN)]


def apportioned(weights: Tensor, seats: int) -> list[int]:
    """Indices in proportion to their weights, `seats` in all (Sainte-Laguë's method)."""
    given = torch.zeros(len(weights))
    taken = []
    for _ in range(seats):
        k = int((weights / (2 * given + 1)).argmax())
        given[k] += 1
        taken.append(k)
    return taken
