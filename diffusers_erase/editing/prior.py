"""What nobody listed: the second moments of text states that any prompt may bring."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.concepts import filled
from diffusers_erase.editing.token_pairs import Texts
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.text_states import whole_words
from diffusers_erase.storage.tensor_cache import TensorCache


WORDS = 2000
"""So many of the tokenizer's own words make the prior of somebody who lists nothing."""

GENERAL = (
    "a photo of {a}",
    "a painting of a house in the style of {}",
    "{}",
    "a red {} on the beach",
    "a painting by {}",
)
"""Prompts as anybody might write them, about things as well as styles."""

SEEN = 64
"""A padded position is looked at in about so many prompts of a long list."""

GOLDEN = (5**0.5 - 1) / 2

_CHUNK = 64
"""Prompts that are encoded at once."""

_SUMMED = 512
"""Prompts whose states are summed in float32."""

_BLOCK = 256
"""Columns of a Gram that are taken at once."""


def gram(texts: Texts, prompts: Sequence[str]) -> Tensor:
    """E e e^T over all tokens of the prompts, width x width, float64 out of float32 sums.

    Most states of a prompt are padding: of a long list's, a part stands for all (see `thinned`).

    Raises:
        ErasureError: there is no prompt.
    """
    if not prompts:
        raise ErasureError("There is no prompt to take statistics of; list some captions.")
    every = max(1, len(prompts) // SEEN)

    def summed(start: int) -> tuple[Tensor, int]:
        """Sums over a stretch of prompts, which are encoded in chunks."""
        chunks = range(start, min(start + _SUMMED, len(prompts)), _CHUNK)
        rows, counts = zip(
            *(thinned(texts, prompts[i : i + _CHUNK], every, first=i) for i in chunks), strict=True
        )
        return lower_gram(torch.cat(rows)), sum(counts)

    total, count = summed(0)
    for start in range(_SUMMED, len(prompts), _SUMMED):
        more, counted = summed(start)
        total, count = total.add_(more), count + counted
    return mirrored(total.div_(count))


def lower_gram(rows: Tensor) -> Tensor:
    """E^T E where the column is not beyond the row's block, float64 out of float32 sums.

    The rest says the same again (see `mirrored`): half the work.
    """
    width = rows.shape[1]
    found = torch.zeros(width, width, dtype=torch.float64)
    for i in range(0, width, _BLOCK):
        found[i : i + _BLOCK, : i + _BLOCK] = rows[:, i : i + _BLOCK].T @ rows[:, : i + _BLOCK]
    return found


def mirrored(lower: Tensor) -> Tensor:
    """What `lower_gram` leaves out is filled in, in place."""
    for i in range(_BLOCK, len(lower), _BLOCK):
        lower[:i, i : i + _BLOCK] = lower[i : i + _BLOCK, :i].T
    return lower


def thinned(
    texts: Texts, prompts: Sequence[str], every: int, *, first: int = 0
) -> tuple[Tensor, int]:
    """Rows whose Gram is that of all states of the prompts, and how many states these are.

    Σ e e^T = Σ_t n_t a a^T + Σ_p n_p b b^T + Σ r r^T,  e = a_t + b_p + r

    for padding: the mean of its position among these prompts, that of its prompt beyond it, and
    the rest, of which every k-th position counts k times. The positions take turns by the golden
    ratio, so that no rhythm of a list of templates meets theirs.

    Args:
        texts: the text encoder.
        prompts: some of a list.
        every: k; with 1, the states themselves.
        first: number of the first of the prompts within the list.
    """
    states = texts.encode(prompts).float().cpu()
    count, length, width = states.shape
    if every == 1:
        return states.view(-1, width), count * length
    is_padding = texts.padded(prompts, length)
    padding = is_padding.float()
    n_t, n_p = padding.sum(0)[:, None], padding.sum(1)[:, None]
    a = torch.einsum("pt,ptw->tw", padding, states) / n_t.clamp(min=1)
    b = (torch.einsum("pt,ptw->pw", padding, states) - padding @ a) / n_p.clamp(min=1)
    turn = (torch.arange(first, first + count) * GOLDEN % 1 * every).long()
    taken = is_padding & ((torch.arange(length) + turn[:, None]) % every == 0)
    p, t = taken.nonzero(as_tuple=True)
    r = states[p, t].sub_(a[t]).sub_(b[p])
    found = (states[~is_padding], n_t.sqrt() * a, n_p.sqrt() * b, every**0.5 * r)
    return torch.cat(found), count * length


def kept_moments(
    texts: Texts,
    listed: Sequence[str],
    near: Sequence[str] = (),
    *,
    general: bool = False,
    cache: TensorCache | None = None,
    encoder: str = "",
) -> Tensor:
    """Second moments of what must survive: near, listed and general prompts as 2 : 1 : 1.

    What is empty leaves its share to the rest. A list says what somebody cares for, and nobody
    cares to list everything: without general prompts an edit that spares other objects ruins
    styles.

    Args:
        texts: the text encoder.
        listed: all that somebody asked to spare.
        near: what an edit would hurt first.
        general: whether to spare the tokenizer's own words, too (see `own_prompts`).
        cache: where moments that were taken before are found.
        encoder: a name for the text encoder's exact weights, for the cache.

    Raises:
        ErasureError: there is no prompt at all.
    """

    def moments(several: Sequence[str]) -> Tensor:
        if cache is None:
            return gram(texts, several)
        key = {"gram": list(several), "encoder": encoder, "seen": SEEN}
        return cache.get(key, lambda: {"gram": gram(texts, several)})["gram"]

    own = own_prompts(texts.tokenizer) if general else []
    parts = [(2, near), (1, listed), (1, own)]
    shares = [(share, several) for share, several in parts if several] or [(1, listed)]
    total = sum(share for share, _ in shares)
    found = torch.zeros((), dtype=torch.float64)
    for share, several in shares:
        found = torch.add(found, moments(several), alpha=share / total)
    return found


def own_words(tokenizer: Any, count: int = WORDS) -> tuple[str, ...]:
    """The `count` most frequent whole words of three letters and more that a tokenizer knows."""
    words = whole_words(tokenizer)
    return tuple(word for word in words if re.fullmatch(r"[a-z]{3,}", word))[:count]


def own_prompts(tokenizer: Any) -> list[str]:
    """The empty prompt, and the tokenizer's own words, which take turns in `GENERAL`.

    Every word is said once, few words several times, so that there are hundreds of prompts.
    """
    words = own_words(tokenizer)
    rounds = max(1, min(len(GENERAL), 500 // max(1, len(words))))
    turns = ((k + r, word) for r in range(rounds) for k, word in enumerate(words))
    return ["", *(filled(GENERAL[i % len(GENERAL)], word) for i, word in turns)]
