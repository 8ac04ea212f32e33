"""A LoRA in training on a denoiser's cross-attention, and prompts that it cannot touch.

The only module that knows peft.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from peft.helpers import rescale_adapter_scale
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.subspace import free, row_space
from diffusers_erase.models.architectures import PARTS, TEXT_PARTS, Factors, projections


@dataclass(frozen=True)
class Attached:
    """A LoRA in training on a denoiser."""

    parameters: list[nn.Parameter]
    adapter_disabled: Callable[[], AbstractContextManager[Any]]
    """In its block the denoiser is the bare base, bit for bit; `requires_grad` is left alone."""
    factors: Callable[[], dict[str, Factors]]
    """The trained factors so far, copied."""
    begin: Callable[[Mapping[str, Factors]], None]
    """Go on from these factors, of the LoRA's rank or less, of the trained layers; what they do to
    held prompts is left out."""


@contextmanager
def attached(
    unet: Any, *, parts: tuple[str, ...], rank: int, seed: int, hold: Tensor | None = None
) -> Iterator[Attached]:
    """A fresh LoRA (B = 0, so it changes nothing yet) on the bare denoiser; taken off at the end.

    Args:
        unet: the denoiser.
        parts: which projections of every cross-attention.
        rank: of every layer's change.
        seed: of the first A.
        hold: N x width text states that are read by `to_k` and `to_v` as the base reads them,
            whatever is trained, at any strength and in any sum of such erasers: A stays orthogonal
            to them by construction. Each independent state costs one of the width's dimensions.

    Raises:
        ErasureError: the denoiser wears another adapter (erasers are made from the bare base), has
            no such parts, or `hold` is asked of parts that do not read the text.
    """
    if getattr(unet, "peft_config", None):
        raise ErasureError(
            f"The denoiser wears adapters ({', '.join(unet.peft_config)}); "
            "erasers are made from the bare base: "
            "call `pipe.unload_lora_weights()` first."
        )
    name, paths = "eraser", list(projections(unet, parts))
    if not paths:
        raise ErasureError(
            f"There is no cross-attention with {' or '.join(parts)} in '{type(unet).__name__}'. "
            f"Known parts: {', '.join(PARTS)}."
        )
    if hold is not None and set(parts) - set(TEXT_PARTS):
        raise ErasureError(
            f"Prompts can be held exactly where only {' and '.join(TEXT_PARTS)} are trained; "
            f"asked for {', '.join(parts)}."
        )
    trainable = {p: p.requires_grad for p in unet.parameters()}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, paths)))

    def factors() -> dict[str, Factors]:
        pairs = ((path, unet.get_submodule(path)) for path in paths)
        return {
            path: (_copy(layer.lora_A[name].weight), _copy(layer.lora_B[name].weight))
            for path, layer in pairs
        }

    def begin(factors: Mapping[str, Factors]) -> None:
        for path, (A, B) in factors.items():
            layer = unet.get_submodule(path)
            _stored(layer.lora_A[name]).data[: len(A)] = A
            _stored(layer.lora_B[name]).data.zero_()[:, : len(A)] = B

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet.add_adapter(config, adapter_name=name)
        parameters = [p for p in unet.parameters() if p not in trainable]
        for p in parameters:
            p.data = p.data.float()  # in half precision Adam's steps round to nothing, or to nan
        if hold is not None:
            basis = row_space(hold)
            for path in paths:
                A = unet.get_submodule(path).lora_A[name]
                register_parametrization(A, "weight", Orthogonal(basis.to(A.weight)))
        yield Attached(parameters, partial(rescale_adapter_scale, unet, 0.0), factors, begin)
    finally:
        unet.unload_lora()
        for p, flag in trainable.items():
            p.requires_grad_(flag)


class Orthogonal(nn.Module):
    """A -> A (I - Q Q^T): whatever is learnt, A Q = 0."""

    Q: Tensor

    def __init__(self, Q: Tensor) -> None:
        """`Q` has orthonormal columns, width x n."""
        super().__init__()
        self.register_buffer("Q", Q)

    def forward(self, A: Tensor) -> Tensor:
        """The part of A's rows that lies outside the span of Q."""
        return free(A, self.Q)


def _stored(layer: Any) -> nn.Parameter:
    """The parameter behind a weight, if need be before its parametrisation."""
    bent = is_parametrized(layer, "weight")
    kept: nn.Parameter = layer.parametrizations.weight.original if bent else layer.weight
    return kept


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu().clone()
