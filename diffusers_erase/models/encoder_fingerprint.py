"""The fingerprint of a pipeline's text encoders, the same in every precision."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.model import Model
from diffusers_erase.storage.tensor_cache import digest


SAMPLE = 4096
"""Approximate number of values of each parameter that are compared, evenly over all of it."""


@dataclass(frozen=True)
class EncoderFingerprint:
    """Text encoders and tokenizers of a pipeline, to tell whether statistics are of these."""

    weights: tuple[str, ...]
    """Digests of a sample of the weights, rounded to float16 and to bfloat16. Names and buffers do
    not count, which versions of transformers change."""
    tokenizers: str
    """Digest of the tokenizers' words."""
    states: tuple[int, ...]
    """Number of text states of a prompt, and their width."""
    empty: tuple[float, ...]
    """Eight numbers of the empty prompt's mean state."""

    @classmethod
    def of(cls, model: Model) -> "EncoderFingerprint":
        """Take it of a model; the empty prompt is encoded.

        Raises:
            ErasureError: prompts cannot be encoded, or the weights are not in memory.
        """
        empty = model.empty_states[0].float()
        parameters = [p for encoder in model.text_encoders for p in encoder.parameters()]
        if any(parameter.is_meta for parameter in parameters):
            raise ErasureError(
                "The text encoder's weights are offloaded and cannot be compared; do this before "
                "`enable_sequential_cpu_offload`."
            )
        samples = [_sample(parameter) for parameter in parameters]
        return cls(
            tuple(_digest(samples, dtype) for dtype in (torch.float16, torch.bfloat16)),
            _words_of(model.tokenizers),
            tuple(empty.shape),
            tuple(round(value, 4) for value in empty.mean(0)[:8].tolist()),
        )

    def difference(self, other: "EncoderFingerprint") -> str:
        """Say how the other differs, as the end of a sentence; empty if it does not.

        The weights are the same if they are after rounding to either type.
        """
        if self.states != other.states:
            return "has {} text states of width {}".format(*other.states)
        if not {*self.weights} & {*other.weights}:
            return "has other weights"
        if self.tokenizers != other.tokenizers:
            return "has a tokenizer with other words"
        own, its = torch.tensor(self.empty), torch.tensor(other.empty)
        if not (own - its).norm() <= 0.1 * own.norm():  # not for nan either
            return "reads prompts in another way"
        return ""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EncoderFingerprint":
        """That of a file.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        length, width = map(int, content["states"])
        first = tuple(map(float, content["empty"]))
        if len(first) != min(8, width):
            raise ValueError("`empty` is of another width than the states")
        weights = tuple(map(str, content["weights"]))
        return cls(weights, str(content["tokenizers"]), (length, width), first)


def _sample(parameter: Tensor) -> tuple[str, Tensor]:
    """A parameter's shape, and some of its values, the same ones wherever it is."""
    flat = parameter.detach().reshape(-1)
    return str(tuple(parameter.shape)), flat[:: max(1, len(flat) // SAMPLE)].cpu()


def _digest(samples: Sequence[tuple[str, Tensor]], dtype: torch.dtype) -> str:
    each = sorted({shape + digest(values.to(dtype)) for shape, values in samples})
    return hashlib.blake2b("".join(each).encode(), digest_size=16).hexdigest()


def _words_of(tokenizers: Sequence[Any]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for tokenizer in tokenizers:
        ids = tokenizer.get_vocab()
        tokens = sorted(ids)
        hashed.update("\0".join(tokens).encode())
        hashed.update(repr([ids[token] for token in tokens]).encode())
    return hashed.hexdigest()
