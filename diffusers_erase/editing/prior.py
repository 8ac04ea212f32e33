"""Second moments of the text states to be kept: listed, near, and general prompts."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.concepts.candidates import unnamed
from diffusers_erase.editing.token_pairs import Texts
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.gram import lower_gram, mirrored
from diffusers_erase.models.text_states import whole_words
from diffusers_erase.storage.tensor_cache import TensorCache


WORDS = 2000
"""Number of the tokenizer's own words that general prompts name."""

GENERAL = (
    "a photo of {a}",
    "a painting of a house in the style of {}",
    "{}",
    "a red {} on the beach",
    "a painting by {}",
)
"""Templates of general prompts, about objects and styles."""

BESIDE = 1.0
"""Weight of prompts about the parts of compounds, relative to all others that are kept."""

SEEN = 64
"""Approximate number of prompts of a long list in which each padding position is sampled."""

GOLDEN = (5**0.5 - 1) / 2

_CHUNK = 64
"""Prompts encoded at once."""

_SUMMED = 512
"""Prompts whose states are summed in float32 before they are added in float64."""


def gram(texts: Texts, prompts: Sequence[str]) -> Tensor:
    """E e e^T over all tokens of the prompts, width x width, float64 out of float32 sums.

    Most states of a prompt are padding, which is sampled in long lists (see `thinned`).
    """
    if not prompts:
        raise ErasureError("There is no prompt to take statistics of; list some captions.")
    every = max(1, len(prompts) // SEEN)

    def summed(start: int) -> tuple[Tensor, int]:
        """The sum over `_SUMMED` prompts from `start` on, and the number of their states."""
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


def thinned(
    texts: Texts, prompts: Sequence[str], every: int, *, first: int = 0
) -> tuple[Tensor, int]:
    """Rows whose Gram matrix estimates that of all states of the prompts, and the states' number.

    Σ e e^T = Σ_t n_t a a^T + Σ_p n_p b b^T + Σ r r^T,  e = a_t + b_p + r

    For padding: a_t is the mean of position t over these prompts, b_p that of prompt p beyond it,
    and of the remainders r every k-th position counts k times. The sampled positions are shifted
    from prompt to prompt by the golden ratio, out of phase with any period of a list of templates.
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
    beside: Sequence[str] = (),
    general: bool = False,
    erased: Sequence[Concept] = (),
    cache: TensorCache | None = None,
    encoder: str = "",
) -> Tensor:
    """Second moments of near, listed and general prompts, weighted 2 : 1 : 1, width x width.

    An empty group leaves its weight to the others. Without general prompts an edit that keeps all
    listed objects ruins styles.

    `near` are prompts about the nearest words, which an edit damages first; `beside`, those about
    the parts of a compound, weigh `BESIDE` times all of these, on top; `general` adds the
    tokenizer's own words (see `own_prompts`), in prompts that do not name what is `erased`;
    `encoder` names its weights for the cache.
    """

    def moments(prompts: Sequence[str]) -> Tensor:
        if cache is None:
            return gram(texts, prompts)
        key = {"gram": list(prompts), "encoder": encoder, "seen": SEEN}
        return cache.get(key, lambda: {"gram": gram(texts, prompts)})["gram"]

    own = own_prompts(texts.tokenizer, erased) if general else []
    parts = [(2, near), (1, listed), (1, own)]
    shares = [(share, prompts) for share, prompts in parts if prompts] or [(1, listed)]
    total = sum(share for share, _ in shares)
    found = torch.zeros((), dtype=torch.float64)
    for share, prompts in shares:
        found = torch.add(found, moments(prompts), alpha=share / total)
    return torch.add(found, moments(beside), alpha=BESIDE) if beside else found


def own_words(tokenizer: Any, count: int = WORDS) -> tuple[str, ...]:
    """The `count` most frequent whole words of three letters and more that a tokenizer knows."""
    words = whole_words(tokenizer)
    return tuple(word for word in words if re.fullmatch(r"[a-z]{3,}", word))[:count]


def own_prompts(tokenizer: Any, erased: Sequence[Concept] = ()) -> list[str]:
    """The empty prompt, and prompts that name the tokenizer's own words, in turns of `GENERAL`.

    Each word is named once; a small tokenizer's are named up to five times. A prompt that names an
    erased concept beside its word is left out.
    """
    words = own_words(tokenizer)
    rounds = max(1, min(len(GENERAL), 500 // max(1, len(words))))
    turns = ((k + r, word) for r in range(rounds) for k, word in enumerate(words))
    return ["", *unnamed(((GENERAL[i % len(GENERAL)], word) for i, word in turns), erased)]
