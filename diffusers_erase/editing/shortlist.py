"""The tokenizer's own words that are nearest to a concept, by states that are known already."""

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Prompt
from diffusers_erase.editing.own_prompts import KeptStatistics, endings
from diffusers_erase.editing.texts import Texts


MANY = 256
"""Number of own words beyond which only the nearest are compared with a concept in detail."""

SHORT = 48
"""Number of words that are."""


def shortlisted(texts: Texts, concept: Concept, known: KeptStatistics) -> list[str]:
    """The `SHORT` own words nearest to the concept, all if there are no more than `MANY`.

    By the ends of the general prompts: min over names c of |e(k) - e(c)|^2 / |e("") - e(c)|^2 in
    the template of the word k. Templates differ in how much they say of a word, so words are ranked
    within each, and every template has its share.
    """
    words = list(dict.fromkeys(word for _, word in known.pairs))
    if len(words) <= MANY:
        return words
    groups: dict[str, list[int]] = {}
    for i, (template, _) in enumerate(known.pairs):
        groups.setdefault(template, []).append(i)
    ranked: dict[str, float] = {}
    for template, rows in groups.items():
        asked = [Prompt(template, name, concept.kind) for name in concept.names]
        own = endings(texts, [p.text for p in asked]).flatten(1)
        without = endings(texts, [p.without() or "" for p in asked]).flatten(1)
        each = known.endings[rows].float().flatten(1)
        apart = _squares(each, own) / (without - own).square().sum(1).clamp(min=1e-9)
        for rank, i in enumerate(apart.min(1).values.argsort().tolist()):
            word = known.pairs[rows[i]][1]
            ranked[word] = min(rank / len(rows), ranked.get(word, 1))
    return sorted(ranked, key=ranked.__getitem__)[:SHORT]


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 for all rows, i x j."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
