"""A LoRA in training on a denoiser's cross-attention; the only module that imports peft."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.helpers import rescale_adapter_scale
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.subspace import project_out, row_space
from diffusers_erase.models.architectures import PARTS, SELF_PARTS, TEXT_PARTS, Factors, projections


@dataclass(frozen=True)
class Attached:
    """A LoRA in training on a denoiser."""

    parameters: list[nn.Parameter]
    adapter_disabled: Callable[[], AbstractContextManager[Any]]
    """Context in which the denoiser is the bare base, bit for bit; `requires_grad` is unchanged."""
    factors: Callable[[], dict[str, Factors]]
    """Copies of the trained factors."""
    begin: Callable[[Mapping[str, Factors]], None]
    """Sets factors of the LoRA's rank or less, projected so that protected prompts are kept."""


@contextmanager
def attached(
    unet: Any, *, parts: tuple[str, ...], rank: int, seed: int, protect: Tensor | None = None
) -> Iterator[Attached]:
    """Context with a new LoRA (B = 0, no change yet) on the bare denoiser; removed at the end.

    Args:
        unet: the denoiser.
        parts: which projections of every cross-attention and the self-attention beside it.
        rank: of every layer's change.
        seed: of the first A.
        protect: N x width text states that `to_k` and `to_v` map exactly as the base does, at any
            strength and in any sum of such erasers: A stays orthogonal to them, in float32. Each
            independent state costs one dimension of the text width.

    Raises:
        ErasureError: the denoiser has another adapter (erasers are made from the bare base) or
            no such parts, or `protect` is given with parts that do not read the text.
    """
    if getattr(unet, "peft_config", None):
        raise ErasureError(
            f"The denoiser has adapters ({', '.join(unet.peft_config)}); erasers are made from the "
            "bare base: call `pipe.unload_lora_weights()` first."
        )
    name, paths = "eraser", list(projections(unet, parts))
    if not paths:
        raise ErasureError(
            f"There is no cross-attention with {' or '.join(parts)} in '{type(unet).__name__}'. "
            f"Known parts: {', '.join((*PARTS, *SELF_PARTS))}."
        )
    if protect is not None and set(parts) - set(TEXT_PARTS):
        raise ErasureError(
            f"Prompts can be protected where only {' and '.join(TEXT_PARTS)} are trained; "
            f"asked for {', '.join(parts)}."
        )
    trainable = {p: p.requires_grad for p in unet.parameters()}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, paths)))

    def copied(path: str, half: str) -> Tensor:
        weight: Tensor = unet.get_submodule(f"{path}.{half}.{name}").weight
        return weight.detach().float().cpu().clone()

    def factors() -> dict[str, Factors]:
        return {path: (copied(path, "lora_A"), copied(path, "lora_B")) for path in paths}

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
        if protect is not None:
            basis = row_space(protect)
            for path in paths:
                A = unet.get_submodule(path).lora_A[name]
                register_parametrization(A, "weight", Orthogonal(basis.to(A.weight)))
        yield Attached(parameters, partial(rescale_adapter_scale, unet, 0.0), factors, begin)
    finally:
        unet.unload_lora()
        for p, flag in trainable.items():
            p.requires_grad_(flag)


class Orthogonal(nn.Module):
    """Parametrisation A -> A (I - Q Q^T), so that A Q = 0."""

    Q: Tensor

    def __init__(self, Q: Tensor) -> None:
        """`Q` has orthonormal columns, width x n."""
        super().__init__()
        self.register_buffer("Q", Q)

    def forward(self, A: Tensor) -> Tensor:
        """The part of A's rows outside the span of Q."""
        return project_out(A, self.Q)


def _stored(layer: Any) -> nn.Parameter:
    """The parameter that stores a weight, before its parametrisation if it has one."""
    weight = layer.parametrizations.weight.original if is_parametrized(layer) else layer.weight
    return cast(nn.Parameter, weight)
