"""Second moments of the text states to be kept: listed, near, and general prompts."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.concepts.candidates import is_kept
from diffusers_erase.concepts.prompts import filled
from diffusers_erase.editing.texts import Texts, evenly
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.gram import lower_gram, mirrored
from diffusers_erase.models.text_states import whole_words
from diffusers_erase.storage.tensor_cache import KeptTensors, TensorCache


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

BESIDE, OTHERS = 1.2, 0.1
"""Weights of prompts about the parts of compounds, and of all others where only compounds are
erased: what tells `red car` from `blue car` are small parts of the text states, and these are free
only where little weighs on them."""

ENDING = 2
"""Number of last states of each general prompt that are kept to compare words by."""

WHOLE, ONE_IN, LEAST = 24, 6, 2
"""Where encoders can end prompts early, one prompt in `ONE_IN` of a list of more than `WHOLE` is
encoded with its padding: at most half as many as states are wide, and at least `LEAST` of every
length."""

SEEN = 64
"""Approximate number of prompts of a long list in which each padding position is sampled."""

GOLDEN = (5**0.5 - 1) / 2

_CHUNK = 64
"""Prompts encoded at once."""

_SUMMED = 8192
"""States that are summed in float32 before they are added in float64."""


def gram(texts: Texts, prompts: Sequence[str]) -> Tensor:
    """E e e^T over all tokens of the prompts, width x width, float64 out of float32 sums.

    Most states of a prompt are padding, which is sampled in long lists: see `thinned`, and `early`
    for encoders that can end prompts early.
    """
    if not prompts:
        raise ErasureError("There is no prompt to take statistics of; list some captions.")
    if texts.first is not None and len(prompts) > WHOLE:
        parts = early(texts, prompts)
    else:
        every = max(1, len(prompts) // SEEN)
        chunks = range(0, len(prompts), _CHUNK)
        parts = (thinned(texts, prompts[i : i + _CHUNK], every, first=i) for i in chunks)
    total, count = torch.zeros((), dtype=torch.float64), 0
    waiting: list[Tensor] = []
    for rows, counted in parts:
        waiting, count = [*waiting, rows], count + counted
        if sum(map(len, waiting)) >= _SUMMED:
            total, waiting = total + lower_gram(torch.cat(waiting)), []
    if waiting:
        total = total + lower_gram(torch.cat(waiting))
    return mirrored(total.div_(count))


def early(texts: Texts, prompts: Sequence[str]) -> Iterator[tuple[Tensor, int]]:
    """Rows whose Gram matrix estimates that of all states of the prompts, and the states' number.

    Each prompt is encoded to the end of its own tokens, and some (`ONE_IN`) with their padding,
    from which that of all is estimated, among prompts of one length:

    e = a_t + ρ_t u + r

    a_t is the mean of position t, u the state of the prompt's end less the mean end, ρ_t how much
    of it is in position t, and the remainders r stand for those of all prompts.
    """
    groups: dict[int, list[str]] = {}
    for prompt, end in zip(prompts, texts.ends(prompts), strict=True):
        groups.setdefault(end, []).append(prompt)
    whole_ones = min(texts.encode([""]).shape[-1] // 2, len(prompts) // ONE_IN)
    for end, group in groups.items():
        few = min(len(group), max(LEAST, whole_ones * len(group) // len(prompts)))
        whole = texts.encode([group[k] for k in evenly(few, len(group))]).float().cpu()
        own, padding = whole[:, end - 1], whole[:, end:]
        u, e = own - own.mean(0), padding - padding.mean(0)
        rho = torch.einsum("ptw,pw->t", e, u) / u.square().sum().clamp(min=1e-12)
        r = (e - rho[:, None] * u[:, None]).flatten(0, 1)
        yield (len(group) / max(1, few - 1)) ** 0.5 * r, 0
        all_ends = []
        for start in range(0, len(group), _SUMMED // end):
            chunk = group[start : start + _SUMMED // end]
            each = torch.stack(texts.beginnings(chunk, [end] * len(chunk)))
            all_ends.append(each[:, -1])
            yield each.flatten(0, 1), each.shape[0] * end
        every = torch.cat(all_ends)
        mean = every.mean(0)
        yield rho.norm() * (every - mean), 0
        a = padding.mean(0) + rho[:, None] * (mean - own.mean(0))
        yield len(group) ** 0.5 * a, len(group) * len(a)


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
    cache: TensorCache | KeptTensors | None = None,
    encoder: str = "",
) -> Tensor:
    """Second moments of near, listed and general prompts, weighted 2 : 1 : 1, width x width.

    An empty group leaves its weight to the others. Without general prompts an edit that keeps all
    listed objects ruins styles.

    `near` are prompts about the nearest words, which an edit damages first; `beside`, those about
    the parts of a compound, have the weight `BESIDE` on top (see there); `general` adds the
    tokenizer's own words (see `own_prompts`), in prompts that do not name what is `erased`;
    `encoder` names its weights for the cache.
    """
    cache = cache or KeptTensors()

    def moments(prompts: Sequence[str]) -> Tensor:
        key = {"gram": list(prompts), "encoder": encoder, "seen": [SEEN, WHOLE, ONE_IN]}
        return cache.get(key, lambda: {"gram": gram(texts, prompts)})["gram"]

    parts = [(2, moments(near)) if near else None, (1, moments(listed)) if listed else None]
    if general:
        parts.append((1, own_statistics(texts, erased, cache, encoder).gram))
    shares = [part for part in parts if part is not None] or [(1, moments(listed))]
    total = sum(share for share, _ in shares)
    found = torch.zeros((), dtype=torch.float64)
    for share, each in shares:
        found = torch.add(found, each, alpha=share / total)
    if not beside:
        return found
    weight = OTHERS if all(concept.kind == "compound" for concept in erased) else 1
    return torch.add(weight * found, moments(beside), alpha=BESIDE)


@dataclass(frozen=True)
class OwnStatistics:
    """Statistics of the prompts that name a tokenizer's own words."""

    pairs: list[tuple[str, str]]
    """The template and the word of each prompt but the empty one."""
    gram: Tensor
    """Second moments of all states, width x width."""
    endings: Tensor
    """The last `ENDING` states of each prompt's own tokens, prompts x `ENDING` x width."""


def own_statistics(
    texts: Texts,
    erased: Sequence[Concept] = (),
    cache: TensorCache | KeptTensors | None = None,
    encoder: str = "",
) -> OwnStatistics:
    """Statistics of `own_prompts`, made once for a cache."""
    pairs = _own_pairs(texts.tokenizer, erased)
    prompts = [filled(template, word) for template, word in pairs]

    def make() -> dict[str, Tensor]:
        found = {"gram": gram(texts, ["", *prompts])}
        return found | {"endings": endings(texts, prompts)}

    key = {"own": prompts, "encoder": encoder, "seen": [SEEN, WHOLE, ONE_IN]}
    return OwnStatistics(pairs, **(cache or KeptTensors()).get(key, make))


def endings(texts: Texts, prompts: Sequence[str]) -> Tensor:
    """The last `ENDING` states of each prompt's own tokens, prompts x `ENDING` x width.

    Those of a last word, if it is one token, and of the end of the text.
    """
    found = []
    for start in range(0, len(prompts), _CHUNK):
        chunk = prompts[start : start + _CHUNK]
        states = texts.beginnings(chunk, texts.ends(chunk))
        found.append(torch.stack([each[-ENDING:] for each in states]))
    return torch.cat(found)


def own_words(tokenizer: Any, count: int = WORDS) -> tuple[str, ...]:
    """The `count` most frequent whole words of three letters and more that a tokenizer knows."""
    words = whole_words(tokenizer)
    return tuple(word for word in words if re.fullmatch(r"[a-z]{3,}", word))[:count]


def own_prompts(tokenizer: Any, erased: Sequence[Concept] = ()) -> list[str]:
    """The empty prompt, and prompts that name the tokenizer's own words, in turns of `GENERAL`.

    Each word is named once; a small tokenizer's are named up to five times. A prompt that names an
    erased concept beside its word is left out.
    """
    return ["", *(filled(template, word) for template, word in _own_pairs(tokenizer, erased))]


def _own_pairs(tokenizer: Any, erased: Sequence[Concept]) -> list[tuple[str, str]]:
    words = own_words(tokenizer)
    rounds = max(1, min(len(GENERAL), 500 // max(1, len(words))))
    pairs = [
        (GENERAL[(k + r) % len(GENERAL)], word)
        for r in range(rounds)
        for k, word in enumerate(words)
    ]
    return [(t, word) for t, word in pairs if is_kept(filled(t, word), word, erased)]
