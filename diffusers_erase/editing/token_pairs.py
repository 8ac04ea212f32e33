"""Pairs of text states for an edit: tokens of a prompt and those that replace them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.model import Model, Segment


Tokens = Literal["last", "last_to_end", "all", "around"]
"""The concept's last token; from there to the end; every token; those after the concept's own."""

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Texts:
    """Prompts -> states, with the tokenizer that says where the words are."""

    encode: Callable[[Sequence[str]], Tensor]
    """Prompts -> P x tokens x width."""
    tokenizer: Any
    """The tokenizer that finds the words of a prompt."""
    segments: tuple[Segment, ...] = ()
    """The texts side by side in the states; if empty, one, by the tokenizer."""

    @property
    def count(self) -> int:
        """Number of texts side by side in the states."""
        return max(1, sum(tokenizer is not None for tokenizer, _ in self.segments))

    def recalling(self, prompts: Sequence[str]) -> "Texts":
        """The same texts; these prompts are encoded now, all at once, and not again."""
        each = list(dict.fromkeys(prompts))
        known = dict(zip(each, self.encode(each), strict=True))

        def encode(asked: Sequence[str]) -> Tensor:
            recalled = all(prompt in known for prompt in asked)
            return torch.stack([known[p] for p in asked]) if recalled else self.encode(asked)

        return replace(self, encode=encode)

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

    def aligned(self, prompt: str, answer: str, length: int) -> list["Alignment"]:
        """Both prompts' positions, within every segment of states of this length."""
        found, start = [], 0
        for tokenizer, own in self.segments or ((self.tokenizer, None),):
            size = length - start if own is None else own
            if tokenizer is not None:
                before, after = (_tokens(tokenizer, text)[:size] for text in (prompt, answer))
                found.append(aligned(before, after, size).later(start))
            start += size
        return found


def texts_of(model: Any) -> Texts:
    """The texts of a `Model` or pipeline: its first tokenizer, and all its text encoders."""
    model = Model.of(model)
    return Texts(model.encode, model.tokenizer, model.segments)


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt up to the end-of-text one, without padding."""
    found: list[int] = tokenizer(prompt, truncation=True).input_ids
    return found


@dataclass(frozen=True)
class Alignment:
    """Pairs of positions of the same words in a prompt and in the prompt that replaces it."""

    before: Pairs
    own: Pairs
    """The concept's tokens; its last is paired with the last of what replaces it."""
    after: Pairs
    """The words that follow, the end of the text, and the padding."""

    def later(self, start: int) -> "Alignment":
        """The same pairs, `start` positions later."""
        both = ([(i + start, j + start) for i, j in p] for p in (self.before, self.own, self.after))
        return Alignment(*both)

    def pairs(self, tokens: Tokens) -> Pairs:
        """The pairs that an edit of these tokens replaces."""
        return {
            "last": self.own[-1:],
            "last_to_end": self.own[-1:] + self.after,
            "all": self.before + self.own + self.after,
            "around": self.after,
        }[tokens]


def aligned(prompt: Sequence[int], answer: Sequence[int], length: int) -> Alignment:
    """Pair the tokens that two sequences share at their beginning and at their end one by one.

    The rest is the concept and its replacement; without one, the concept's tokens are paired with
    the word before them. Both end with the end of text; `length` counts the padding too.
    """
    shorter = min(len(prompt), len(answer))
    first = next((i for i in range(shorter) if prompt[i] != answer[i]), shorter)
    last = 0
    while last < shorter - first and prompt[-1 - last] == answer[-1 - last]:
        last += 1
    if first + last == len(prompt):  # the answer only adds words: `truck` -> `fire truck`
        last -= 1
    ends = len(prompt) - last, len(answer) - last
    shift = ends[1] - ends[0]
    return Alignment(
        [(i, i) for i in range(first)],
        [(i, min(max(i + shift, first, 0), max(ends[1] - 1, 0))) for i in range(first, ends[0])],
        [(i, i + shift) for i in range(ends[0], length) if i + shift < length],
    )


def paired_states(
    texts: Texts, prompts: Sequence[str], answers: Sequence[str], tokens: Tokens = "all"
) -> tuple[Tensor, Tensor]:
    """Text states E of the prompts, and the state V that replaces each: two n x width."""
    E, V = texts.encode(prompts), texts.encode(answers)
    rows: list[tuple[int, int, int]] = []
    for k, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if prompt == answer:
            raise ErasureError(
                f"{prompt!r} would be replaced by itself: there is nothing to erase."
            )
        for found in texts.aligned(prompt, answer, E.shape[1]):
            rows += [(k, i, j) for i, j in found.pairs(tokens)]
    prompt_of, i, j = torch.tensor(rows).unbind(1)
    return E[prompt_of, i].double().cpu(), V[prompt_of, j].double().cpu()


def without_shared_part(E: Tensor, V: Tensor, G: Tensor | None) -> Tensor:
    """Targets without what they share with the concept: v - e (v^T G e) / (e^T G e).

    W v is then orthogonal to W e, over all layers together. The tensor target of UCE's first code,
    which does it layer by layer.
    """
    if G is None:
        raise ErasureError("A tensor target needs the weights that read the text, for Σ W^T W.")
    read = E @ G
    return V - E * ((V * read).sum(1) / (E * read).sum(1))[:, None]


def shell(
    rows: Tensor, copies: int, *, cosine: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """|e| (s e/|e| + sqrt(1 - s^2) z),  s ~ U[cosine], z a random direction orthogonal to e

    Random states around each row, which RealEra erases too (arXiv 2410.09140, reconstructed).
    n * copies x width, the copies of a row one after the other.
    """
    e = rows.repeat_interleave(copies, 0)
    size = e.norm(dim=1, keepdim=True)
    unit = e / size
    z = torch.randn(e.shape, generator=generator, dtype=e.dtype)
    z = torch.nn.functional.normalize(z - (z * unit).sum(1, keepdim=True) * unit, dim=1)
    low, high = cosine
    s = low + (high - low) * torch.rand(len(e), 1, generator=generator, dtype=e.dtype)
    around: Tensor = size * (s * unit + (1 - s.square()).sqrt() * z)
    return around
