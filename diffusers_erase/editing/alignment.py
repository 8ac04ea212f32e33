"""Positions of the same words in a prompt and in the prompt that replaces it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


Tokens = Literal["last", "last_to_end", "all", "around"]
"""The concept's last token; from there to the end; every token; those after the concept's own."""

Pairs = list[tuple[int, int]]


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
