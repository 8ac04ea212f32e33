"""What nobody listed: the second moments of text states that any prompt may bring."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.cache import TensorCache
from diffusers_erase.editing.rows import Texts
from diffusers_erase.errors import ErasureError


WORDS = 2000
"""So many of the tokenizer's own words make the prior of somebody who lists nothing."""

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
    prompts: Sequence[str],
    near: Sequence[str],
    *,
    cache: TensorCache | None = None,
    encoder: str = "",
) -> Tensor:
    """Half the second moments of all prompts, half of the near ones, if there are any.

    Args:
        texts: the text encoder.
        prompts: all that is to be spared.
        near: those of them that an edit would hurt first.
        cache: where moments that were taken before are found.
        encoder: a name for the text encoder's exact weights, for the cache.
    """

    def moments(several: Sequence[str]) -> Tensor:
        if cache is None:
            return gram(texts, several)
        key = {"gram": list(several), "encoder": encoder}
        return cache.get(key, lambda: {"gram": gram(texts, several)})["gram"]

    return (moments(prompts) + moments(near)) / 2 if near else moments(prompts)


def own_words(tokenizer: Any, count: int = WORDS) -> tuple[str, ...]:
    """The `count` most frequent whole words of three letters and more that a tokenizer knows.

    Its merges are in the order of how often they were met in the captions it was fitted to, and so
    are its tokens.
    """
    by_rank = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    words = (token.removesuffix("</w>") for token, _ in by_rank if token.endswith("</w>"))
    return tuple(word for word in words if re.fullmatch(r"[a-z]{3,}", word))[:count]
