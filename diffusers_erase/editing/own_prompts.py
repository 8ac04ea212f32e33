"""General prompts, which name a tokenizer's own words, and their statistics for every eraser."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.concepts.candidates import is_kept
from diffusers_erase.concepts.prompts import filled
from diffusers_erase.editing.naming import Named
from diffusers_erase.editing.prior import gram, sampling
from diffusers_erase.editing.texts import Texts
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.gram import packed, unpacked
from diffusers_erase.models.text_states import whole_words


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

ENDING = 2
"""Number of last states of each general prompt that are kept to compare words by."""

_CHUNK = 64
"""Prompts encoded at once."""


@dataclass(frozen=True)
class KeptStatistics:
    """Statistics of the general prompts that name no erased concept."""

    pairs: list[tuple[str, str]]
    """The template and the word of each prompt but the empty one."""
    gram: Tensor
    """Second moments of all states, width x width, float64."""
    endings: Tensor
    """The last `ENDING` states of each prompt's own tokens, prompts x `ENDING` x width."""


@dataclass(frozen=True)
class OwnStatistics:
    """Statistics of all general prompts of a text encoder, from which those of an eraser follow."""

    words: tuple[str, ...]
    grams: Tensor
    """Second moments of the states of each template's prompts, lower triangles, float32:
    templates x width (width + 1) / 2."""
    endings: Tensor
    """The last `ENDING` states of each prompt's own tokens, float16: prompts x `ENDING` x width."""

    @classmethod
    def of(cls, texts: Texts) -> "OwnStatistics":
        """Encode the prompts of `own_prompts`.

        Raises:
            ErasureError: the tokenizer has no token for any whole word.
        """
        words = own_words(texts.tokenizer)
        if not words:
            raise ErasureError(
                "The tokenizer has a token for no whole word, so that there are no general prompts "
                "to keep; pass a vocabulary."
            )
        pairs = own_pairs(words)
        prompts = [filled(template, word) for template, word in pairs]
        grams = []
        for template in GENERAL:
            named = [p for p, (own, _) in zip(prompts, pairs, strict=True) if own == template]
            grams.append(packed(gram(texts, named, among=len(prompts))))
        return cls(words, torch.stack(grams), endings(texts, prompts).half())

    def without(self, texts: Texts, erased: Sequence[Concept] = ()) -> KeptStatistics:
        """Statistics of the prompts that do not name an erased concept beside their word.

        A template of which none does is not encoded. Of others what is kept is: little where the
        template names the concept itself (`a red {} on the beach`, for `red`). What is left out
        cannot be subtracted: the padding of most prompts is an estimate (`prior.early`), and its
        difference from that of single prompts can be indefinite.
        """
        pairs, named = own_pairs(self.words), Named(erased)
        texts_of_pairs = [filled(template, word) for template, word in pairs]
        kept = [
            is_kept(text, word, named.near(text))
            for text, (_, word) in zip(texts_of_pairs, pairs, strict=True)
        ]
        total, whole = gram(texts, [""]), torch.zeros(self.grams.shape[1], dtype=torch.float64)
        for template, triangle in zip(GENERAL, self.grams, strict=True):
            mine = [
                (text, k)
                for text, (t, _), k in zip(texts_of_pairs, pairs, kept, strict=True)
                if t == template
            ]
            stays = [text for text, k in mine if k]
            if len(stays) == len(mine):
                whole.add_(triangle, alpha=len(mine))
            elif stays:
                total.add_(gram(texts, stays, among=len(pairs)), alpha=len(stays))
        rows = self.endings if all(kept) else self.endings[torch.tensor(kept)]
        found = [pair for pair, k in zip(pairs, kept, strict=True) if k]
        return KeptStatistics(found, total.add_(unpacked(whole)).div_(len(found) + 1), rows)


def settings() -> dict[str, Any]:
    """All that determines the statistics of a text encoder, beside its own words."""
    return {"templates": list(GENERAL), "ending": ENDING, **sampling()}


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
    words = (word for word in whole_words(tokenizer) if re.fullmatch(r"[a-z]{3,}", word))
    return tuple(islice(words, count))


def own_pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """The template and the word of each general prompt but the empty one, in turns of `GENERAL`.

    Each word is named once; a small tokenizer's are named up to five times.
    """
    rounds = max(1, min(len(GENERAL), 500 // max(1, len(words))))
    return [
        (GENERAL[(k + r) % len(GENERAL)], word)
        for r in range(rounds)
        for k, word in enumerate(words)
    ]


def own_prompts(tokenizer: Any) -> list[str]:
    """The empty prompt, and the general prompts."""
    return ["", *(filled(template, word) for template, word in own_pairs(own_words(tokenizer)))]
