"""Second moments of the text states to be kept: listed, near, and general prompts."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.editing.texts import Texts, evenly
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.gram import lower_gram, mirrored
from diffusers_erase.storage.tensor_cache import KeptTensors, TensorCache


BESIDE, OTHERS = 1.2, 0.1
"""Weights of prompts about the parts of compounds, and of all others where only compounds are
erased: what tells `red car` from `blue car` are small parts of the text states, and these are free
only where little weighs on them."""

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


def sampling() -> dict[str, int]:
    """The numbers by which long lists of prompts are sampled, to name their statistics by."""
    return {"seen": SEEN, "whole": WHOLE, "one_in": ONE_IN, "least": LEAST}


def gram(texts: Texts, prompts: Sequence[str], among: int = 0) -> Tensor:
    """E e e^T over all tokens of the prompts, width x width, float64 out of float32 sums.

    Most states of a prompt are padding, which is sampled in long lists: see `thinned`, and `early`
    for encoders that can end prompts early. Part of a list of `among` prompts is sampled as the
    whole list is.
    """
    among = max(among, len(prompts))
    if not prompts:
        raise ErasureError("There is no prompt to take statistics of; list some captions.")
    if texts.first is not None and len(prompts) > WHOLE:
        parts = early(texts, prompts, among)
    else:
        every = max(1, among // SEEN)
        chunks = range(0, len(prompts), _CHUNK)
        parts = (thinned(texts, prompts[i : i + _CHUNK], every, first=i) for i in chunks)
    total, count = None, 0
    waiting: list[Tensor] = []
    for rows, counted in parts:
        waiting, count = [*waiting, rows], count + counted
        if sum(map(len, waiting)) >= _SUMMED:
            total, waiting = lower_gram(torch.cat(waiting), total), []
    if waiting or total is None:
        total = lower_gram(torch.cat(waiting), total)
    return mirrored(total.div_(count))


def early(texts: Texts, prompts: Sequence[str], among: int) -> Iterator[tuple[Tensor, int]]:
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
    whole_ones = min(texts.encode([""]).shape[-1] // 2, among // ONE_IN)
    for end, group in groups.items():
        few = min(len(group), max(LEAST, whole_ones * len(group) // among))
        own, e = _ends_and_padding(texts, [group[k] for k in evenly(few, len(group))], end)
        u, mean_padding = own - own.mean(0), e.mean(0)
        e -= mean_padding
        rho = torch.einsum("ptw,pw->t", e, u) / u.square().sum().clamp(min=1e-12)
        weight = (len(group) / max(1, few - 1)) ** 0.5
        for some, its_u in zip(e.split(_CHUNK), u.split(_CHUNK), strict=True):
            yield weight * (some - rho[:, None] * its_u[:, None]).flatten(0, 1), 0
        del e, some
        all_ends = []
        for start in range(0, len(group), _SUMMED // end):
            chunk = group[start : start + _SUMMED // end]
            each = torch.stack(texts.beginnings(chunk, [end] * len(chunk)))
            all_ends.append(each[:, -1])
            yield each.flatten(0, 1), each.shape[0] * end
        every = torch.cat(all_ends)
        mean = every.mean(0)
        yield rho.norm() * (every - mean), 0
        a = mean_padding + rho[:, None] * (mean - own.mean(0))
        yield len(group) ** 0.5 * a, len(group) * len(a)


def _ends_and_padding(texts: Texts, prompts: Sequence[str], end: int) -> tuple[Tensor, Tensor]:
    """States of the ends of the prompts' own words, P x width, and of the padding, P x n x width.

    All prompts are of one length, `end`.
    """
    found = None
    for start in range(0, len(prompts), _CHUNK):
        states = texts.encode(prompts[start : start + _CHUNK])[:, end - 1 :].float().cpu()
        found = states.new_empty(len(prompts), *states.shape[1:]) if found is None else found
        found[start : start + len(states)] = states
    assert found is not None
    return found[:, 0].clone(), found[:, 1:]


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
    general: Tensor | None = None,
    erased: Sequence[Concept] = (),
    cache: TensorCache | KeptTensors | None = None,
    encoder: str = "",
) -> Tensor:
    """Second moments of near, listed and general prompts, weighted 2 : 1 : 1, width x width.

    An empty group leaves its weight to the others. Without general prompts an edit that keeps all
    listed objects ruins styles.

    `near` are prompts about the nearest words, which an edit damages first; `beside`, those about
    the parts of a compound, have the weight `BESIDE` on top (see there); `general` are second
    moments of general prompts that do not name what is `erased` (see `OwnStatistics`); `encoder`
    names its weights for the cache.
    """
    cache = cache or KeptTensors()

    def moments(prompts: Sequence[str]) -> Tensor:
        key = {"gram": list(prompts), "encoder": encoder, "sampling": sampling()}
        return cache.get(key, lambda: {"gram": gram(texts, prompts)})["gram"]

    parts = [(2, moments(near)) if near else None, (1, moments(listed)) if listed else None]
    parts.append((1, general) if general is not None else None)
    shares = [part for part in parts if part is not None] or [(1, moments(listed))]
    total = sum(share for share, _ in shares)
    found = torch.zeros((), dtype=torch.float64)
    for share, each in shares:
        found = torch.add(found, each, alpha=share / total)
    if not beside:
        return found
    weight = OTHERS if all(concept.kind == "compound" for concept in erased) else 1
    return torch.add(weight * found, moments(beside), alpha=BESIDE)
