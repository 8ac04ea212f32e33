"""Pairs of text states for an edit: tokens of a prompt and those that replace them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.editing.alignment import Tokens
from diffusers_erase.editing.texts import Texts, evenly
from diffusers_erase.errors import ErasureError


MOST_ROWS = 16384
"""Number of rows beyond which they are rotated into fewer."""


@dataclass(frozen=True)
class Rows:
    """States to be replaced and their replacements; a row may stand for several states."""

    E: Tensor
    """Rows x width, float64, times the root of the number of states that each row stands for."""
    V: Tensor
    """What replaces them, weighted alike."""
    count: float
    """The number of all states."""

    @classmethod
    def joined(cls, parts: Iterable["Rows"]) -> "Rows":
        """All rows, one part after the other.

        More than `MOST_ROWS` are rotated into as many as the width: E^T E and (V - E)^T E stay.
        """
        E: list[Tensor] = []
        V: list[Tensor] = []
        count = 0.0
        for part in parts:
            E, V, count = [*E, part.E], [*V, part.V], count + part.count
            if sum(map(len, E)) > MOST_ROWS:
                whole, aims = torch.cat(E), torch.cat(V)
                Q, R = torch.linalg.qr(whole)
                E, V = [R], [Q.T @ aims]
        return cls(torch.cat(E), torch.cat(V), count)


def paired_states(
    texts: Texts,
    prompts: Sequence[str],
    answers: Sequence[str],
    tokens: Tokens = "all",
    whole: int | None = None,
) -> Rows:
    """Text states of the prompts, and the state that replaces each.

    All paddings of `whole` prompts, spread evenly over the list, stand for those of all; of none,
    if it is zero, and then the first padding of a prompt stands for its others. This needs an
    encoder that can end prompts early (see `Texts.first`); with others, or by default, every
    padding is a row.
    """
    for prompt, answer in zip(prompts, answers, strict=True):
        if prompt == answer:
            raise ErasureError(
                f"{prompt!r} would be replaced by itself: there is nothing to erase."
            )
    length, ends = texts.length, texts.ends([*prompts, *answers])
    count = len(prompts)
    if whole is None or texts.first is None or whole >= count:
        read = set(range(count))
    else:
        read = set(evenly(whole, count))
    states = texts.beginnings(
        [*prompts, *answers],
        [length if k % count in read else min(end + 1, length) for k, end in enumerate(ends)],
    )
    rows: list[tuple[int, int, int, bool]] = []
    pads, kept = 0, 0
    for k, alignments in enumerate(texts.all_aligned(prompts, answers, length)):
        for found in alignments:
            for i, j in found.pairs(tokens):
                padding = len(read) < count and i >= ends[k]
                here = len(states[k]) > i and len(states[count + k]) > j
                here &= not padding or k in read or not read
                pads, kept = pads + padding, kept + (padding and here)
                if here:
                    rows.append((k, i, j, padding))
    E = torch.stack([states[k][i] for k, i, _, _ in rows]).double()
    V = torch.stack([states[count + k][j] for k, _, j, _ in rows]).double()
    if kept:
        roots = torch.tensor([(pads / kept) ** 0.5 if p else 1.0 for *_, p in rows])[:, None]
        E, V = E * roots, V * roots
    return Rows(E, V, len(rows) + pads - kept)


def without_shared_part(E: Tensor, V: Tensor, G: Tensor | None) -> Tensor:
    """Targets without what they share with the concept: v - e (v^T G e) / (e^T G e).

    W v is then orthogonal to W e, over all layers together. The tensor target of UCE's first code,
    which does it layer by layer.
    """
    if G is None:
        raise ErasureError("A tensor target needs the weights that read the text, for Σ W^T W.")
    read = E @ G
    return V - E * ((V * read).sum(1) / (E * read).sum(1))[:, None]
