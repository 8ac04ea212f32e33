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

SAID = ("a photo of a {}", "{}", "a {} in a picture", "a painting by {}")
"""Ways in which the words take turns."""

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


def prior(
    texts: Texts, prompts: Sequence[str], *, cache: TensorCache | None = None, encoder: str = ""
) -> Tensor:
    """`gram`, from the cache if it was taken of this text encoder before."""
    if cache is None:
        return gram(texts, prompts)
    key = {"gram": list(prompts), "encoder": encoder}
    return cache.get(key, lambda: {"gram": gram(texts, prompts)})["gram"]


def own_words(tokenizer: Any, count: int = WORDS) -> tuple[str, ...]:
    """The `count` most frequent whole words of three letters and more that a tokenizer knows.

    Its merges are in the order of how often they were met in the captions it was fitted to, and so
    are its tokens.
    """
    by_rank = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    words = (token.removesuffix("</w>") for token, _ in by_rank if token.endswith("</w>"))
    return tuple(word for word in words if re.fullmatch(r"[a-z]{3,}", word))[:count]


def own_prompts(tokenizer: Any, count: int = WORDS) -> list[str]:
    """A prompt for each of the tokenizer's own words."""
    return [SAID[i % len(SAID)].format(word) for i, word in enumerate(own_words(tokenizer, count))]
