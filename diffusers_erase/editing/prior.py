"""What nobody listed: the second moments of text states that any prompt may bring."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.cache import TensorCache
from diffusers_erase.concepts import articles_agree, whole_words
from diffusers_erase.editing.rows import Texts
from diffusers_erase.errors import ErasureError


WORDS = 2000
"""So many of the tokenizer's own words make the prior of somebody who lists nothing."""

GENERAL = (
    "a photo of a {}",
    "a painting of a house in the style of {}",
    "{}",
    "a red {} on the beach",
    "a painting by {}",
)
"""Prompts as anybody might write them, about things as well as styles."""

_CHUNK = 64


def gram(texts: Texts, prompts: Sequence[str]) -> Tensor:
    """E e e^T over all tokens of the prompts, width x width, float64 out of float32 sums.

    Raises:
        ErasureError: there is no prompt.
    """
    if not prompts:
        raise ErasureError("There is no prompt to take statistics of; list some captions.")
    total, count = torch.zeros((), dtype=torch.float64), 0
    for start in range(0, len(prompts), _CHUNK):
        rows = texts.encode(prompts[start : start + _CHUNK]).flatten(0, 1).float().cpu()
        total, count = total + (rows.T @ rows).double(), count + len(rows)
    return total / count


def spared(
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
        key = {"gram": list(several), "encoder": encoder}
        return cache.get(key, lambda: {"gram": gram(texts, several)})["gram"]

    own = own_prompts(texts.tokenizer) if general else []
    parts = [(2, near), (1, listed), (1, own)]
    shares = [(share, several) for share, several in parts if several] or [(1, listed)]
    total = sum(share for share, _ in shares)
    return torch.stack([share / total * moments(several) for share, several in shares]).sum(0)


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
    return ["", *(articles_agree(GENERAL[i % len(GENERAL)].format(word)) for i, word in turns)]
