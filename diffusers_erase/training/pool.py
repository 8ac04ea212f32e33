"""What must survive: prompts about the other words of a vocabulary, most about the nearest."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from diffusers_erase.concepts import TEMPLATES, Vocabulary, filled
from diffusers_erase.training.targets import TargetContext, distances


NEAR = 8
"""So many of the nearest words are spared as much as all together."""

NEAREST = 0.05
"""Words nearer than this count as so near: a synonym must not take all seats."""


def pool(context: TargetContext, vocabulary: Vocabulary | None, count: int) -> list[str]:
    """`count` prompts for training, shared out among the words by one over their distance."""
    words = vocabulary.others(context.concepts) if vocabulary and count else ()
    if not words:
        return []
    nearness = 1 / distances(context, words).amin(0).clamp(min=NEAREST)
    templates = islice(cycle(TEMPLATES[context.concepts[0].kind]), count)
    taken = apportioned(nearness, count)
    return [filled(template, words[k]) for template, k in zip(templates, taken, strict=True)]


def near_words(context: TargetContext, words: Sequence[str], count: int = NEAR) -> list[str]:
    """The `count` words nearest to each concept, each word once."""
    ranked = distances(context, words).argsort(1)[:, :count]
    return list(dict.fromkeys(words[k] for row in ranked.tolist() for k in row))


def apportioned(weights: Tensor, seats: int) -> list[int]:
    """Indices in proportion to their weights, `seats` in all (Sainte-Laguë's method)."""
    given = torch.zeros(len(weights))
    taken = []
    for _ in range(seats):
        k = int((weights / (2 * given + 1)).argmax())
        given[k] += 1
        taken.append(k)
    return taken
