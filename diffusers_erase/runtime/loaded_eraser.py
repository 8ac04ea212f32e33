"""A loaded eraser, and what the backends that make it act have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.models.architectures import Factors


Mode = Literal["bake", "hook", "adapter"]
"""In the weights; added to the output of the layers while they run; an ordinary adapter of peft."""

Keep = Literal["cpu"] | bool
"""Where weights without erasers are kept: beside the weights, on the CPU, or not at all."""

KeepNull = Literal["exact"]
"""The eraser is skipped for the empty prompt."""


@dataclass(frozen=True)
class LoadedEraser:
    """An eraser on a denoiser; `ErasureInfo` says what its source and commit are."""

    adapter: EraserAdapter
    strength: float
    mode: Mode = "bake"
    source: str | None = None
    commit: str | None = None
    null: Tensor | None = None
    """Text states (tokens x width) for which it is skipped, if it is a hook."""


@dataclass
class Planning:
    """Settings and original weights that the backends share while a change is planned."""

    keep: Keep
    bases: dict[str, Tensor] = field(default_factory=dict)
    """Path -> weight without erasers, of layers that erasers are in or are to be written into."""


class Change(NamedTuple):
    """A change of a denoiser that has been computed and checked, and its inverse."""

    apply: Callable[[], None]
    """Makes the change; if this raises, `undo` follows."""
    undo: Callable[[], None]
    """Restores the state before `apply`, even if that was interrupted."""


class Backend(Protocol):
    """One way in which erasers act on a denoiser; it applies the erasers of one mode."""

    def plan(
        self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser], planning: Planning
    ) -> Change:
        """Compute and check the change that makes exactly these erasers act.

        Raises:
            ErasureError: they cannot act in this way.
        """

    def acting(self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, float]:
        """Name -> share of an eraser's change that acts now; nan if that cannot be known."""

    def bases(self) -> dict[str, Tensor]:
        """Path -> weight without erasers, of layers this backend has written erasers into."""


@torch.no_grad()
def factors_of(
    eraser: LoadedEraser, path: str, layer: nn.Linear, pristine: Tensor | None
) -> Factors:
    """A and B of one layer; those of a text map are V^T and W0 U.

    `pristine` is the layer's weight W0 without erasers. Where that cannot be read (None), the
    layer's own forward pass, without the hooks of other erasers, computes W0 U.
    """

    def product(x: Tensor) -> Tensor:
        if pristine is not None:
            return pristine.float().cpu() @ x.float()
        rows = torch.cat([torch.zeros(1, len(x)), x.T.float()]).to(layer.weight.device)
        dtype = layer.weight.dtype if layer.weight.dtype.is_floating_point else torch.float32
        found = layer.forward(rows.to(dtype)).float().cpu()
        return (found[1:] - found[:1]).T.contiguous()  # without the bias

    A, B = eraser.adapter.source.pair(path, product)
    return A.contiguous(), B
