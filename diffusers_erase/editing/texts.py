"""Prompts and their text states, each encoded once and no further than is needed."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.editing.alignment import Alignment, aligned
from diffusers_erase.models.model import Model, Segment


_POSITIONS = 64 * 77
"""Number of positions encoded at once."""

REMEMBERED = 256 * 2**20
"""Bytes of text states that are kept."""


@dataclass(frozen=True)
class Texts:
    """Prompts -> states, with the tokenizer that says where the words are."""

    encode: Callable[[Sequence[str]], Tensor]
    """Prompts -> P x tokens x width."""
    tokenizer: Any
    """The tokenizer that finds the words of a prompt."""
    segments: tuple[Segment, ...] = ()
    """The texts side by side in the states; if empty, one, by the tokenizer."""
    first: Callable[[Sequence[str], int], Tensor] | None = None
    """Prompts, length -> their first states, P x length x width, at the cost of so many; None for
    an encoder whose states depend on what follows."""

    @property
    def count(self) -> int:
        """Number of texts side by side in the states."""
        return max(1, sum(tokenizer is not None for tokenizer, _ in self.segments))

    @property
    def length(self) -> int:
        """Number of states of every prompt."""
        return self.encode([""]).shape[1]

    def ends(self, prompts: Sequence[str]) -> list[int]:
        """Number of states of each prompt's own tokens, by the first tokenizer."""
        tokens = self.tokenizer(list(prompts), truncation=True).input_ids if prompts else []
        return [len(each) for each in tokens]

    def beginnings(self, prompts: Sequence[str], lengths: Sequence[int]) -> list[Tensor]:
        """The first states of each prompt, float32 on the CPU: its own length x width.

        Prompts of one length are encoded together.
        """
        groups: dict[int, list[int]] = {}
        for k, length in enumerate(lengths):
            groups.setdefault(length, []).append(k)
        found: list[Tensor] = [torch.empty(0)] * len(prompts)
        for length, group in sorted(groups.items(), reverse=True):
            asked = [prompts[k] for k in group]
            whole = self.encode(asked)[:, :length] if self.first is None else None
            states = self.first(asked, length) if self.first is not None else whole
            assert states is not None
            for k, each in zip(group, states.float().cpu(), strict=True):
                found[k] = each
        return found

    def compared_length(self, prompts: Sequence[str]) -> int:
        """Number of states by which prompts are compared: their own tokens and one padding."""
        if self.first is None:
            return self.length
        return min(self.length, max(self.ends(prompts)) + 1)

    def compared(self, prompts: Sequence[str], length: int) -> Tensor:
        """States of prompts for sums of squares over all positions, P x length x width, float32.

        The last, a padding, stands for all behind it: it is weighted by the root of their number.
        """
        states = self.first(prompts, length).clone() if self.first else self.encode(prompts)
        states = states.float().cpu()
        if length < self.length:
            states[:, -1] *= (self.length - length + 1) ** 0.5
        return states

    def padded(self, prompts: Sequence[str], length: int) -> Tensor:
        """Which of `length` states come after a prompt's own tokens, prompts x length.

        Where a segment's tokenizer is not known, none do.
        """
        found, start = torch.zeros(len(prompts), length, dtype=torch.bool), 0
        for tokenizer, own in self.segments or ((self.tokenizer, None),):
            size = length - start if own is None else own
            if tokenizer is not None:
                tokens = tokenizer(list(prompts), truncation=True).input_ids
                ends = torch.tensor([len(each) for each in tokens])
                found[:, start : start + size] = torch.arange(size) >= ends[:, None]
            start += size
        return found

    def aligned(self, prompt: str, answer: str, length: int) -> list[Alignment]:
        """Both prompts' positions, within every segment of states of this length."""
        return self.all_aligned([prompt], [answer], length)[0]

    def all_aligned(
        self, prompts: Sequence[str], answers: Sequence[str], length: int
    ) -> list[list[Alignment]]:
        """`aligned` of each prompt and its answer."""
        found: list[list[Alignment]] = [[] for _ in prompts]
        start, texts = 0, [*prompts, *answers]
        for tokenizer, own in self.segments or ((self.tokenizer, None),):
            size = length - start if own is None else own
            if tokenizer is not None and texts:
                tokens = tokenizer(texts, truncation=True).input_ids
                for k, each in enumerate(found):
                    before, after = tokens[k][:size], tokens[len(prompts) + k][:size]
                    each.append(aligned(before, after, size).later(start))
            start += size
        return found


def texts_of(model: Any) -> Texts:
    """The texts of a `Model` or pipeline: its first tokenizer, and all its text encoders.

    States are kept while the texts are in use, up to `REMEMBERED` bytes: no prompt is encoded twice
    at the same length.
    """
    model = Model.of(model)
    kept = _Kept(model)
    first = kept.first if model.ends_early else None
    return Texts(kept.encode, model.tokenizer, model.segments, first)


class _Kept:
    """The states of a model's prompts, the least recently used of which are forgotten."""

    def __init__(self, model: Model, limit: int = REMEMBERED) -> None:
        self.model, self.limit = model, limit
        self.states: OrderedDict[str, Tensor] = OrderedDict()
        self.bytes = 0

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """All states of the prompts."""
        return self._of(prompts, None)

    def first(self, prompts: Sequence[str], length: int) -> Tensor:
        """The first states of the prompts."""
        return self._of(prompts, length)

    def _of(self, prompts: Sequence[str], length: int | None) -> Tensor:
        if not self.states:
            self._keep("", self.model.empty_states[0].float().cpu())
        least = self.model.text_length if length is None else length
        found = {p: self.states[p] for p in prompts if len(self.states.get(p, ())) >= least}
        missing = [p for p in dict.fromkeys(prompts) if p not in found]
        at_once = max(1, _POSITIONS // least)
        for start in range(0, len(missing), at_once):
            chunk = missing[start : start + at_once]
            states = self.model.encode(chunk) if length is None else self.model.first(chunk, length)
            states = states.float().cpu()
            found |= {p: each.clone() for p, each in zip(chunk, states, strict=True)}
        for prompt in dict.fromkeys(prompts):
            self._keep(prompt, found[prompt])
        return torch.stack([found[p][:least] for p in prompts])

    def _keep(self, prompt: str, states: Tensor) -> None:
        old = self.states.pop(prompt, None)
        self.bytes += states.nbytes - (0 if old is None else old.nbytes)
        self.states[prompt] = states
        while self.bytes > self.limit and len(self.states) > 1:
            self.bytes -= self.states.popitem(last=False)[1].nbytes


def evenly(count: int, of: int) -> list[int]:
    """`count` of the numbers below `of`, evenly over all of them."""
    return [i * of // count for i in range(count)]
