"""What is loaded: an eraser, how strongly, and by which means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.models.architectures import Factors
from diffusers_erase.storage.tensor_cache import digest


Mode = Literal["bake", "hook", "adapter"]
"""In the weights; added to the output of the layers while they run; an ordinary adapter of peft."""


@dataclass(frozen=True)
class LoadedEraser:
    """An eraser as it is loaded."""

    adapter: EraserAdapter
    strength: float
    mode: Mode = "bake"
    source: str | None = None
    """The folder or Hub id it came from; None for an object."""
    commit: str | None = None
    """Of the repository, where it came from the Hub."""


def by_mode(loaded: Mapping[str, LoadedEraser], mode: Mode) -> dict[str, LoadedEraser]:
    """Those that act by this means, in the order of their names: that of loading is no matter."""
    return {name: loaded[name] for name in sorted(loaded) if loaded[name].mode == mode}


@torch.no_grad()
def factors_of(
    eraser: LoadedEraser, path: str, layer: nn.Linear, pristine: Tensor | None
) -> Factors:
    """A and B of one layer; those of a text map are V^T and W0 U.

    A layer whose weight cannot be read is asked for W0 U, past the hooks of other erasers.

    Args:
        eraser: an eraser.
        path: of the layer.
        layer: itself.
        pristine: its weight without erasers, where it can be read.
    """

    def product(x: Tensor) -> Tensor:
        if pristine is not None:
            return pristine.float().cpu() @ x.float()
        asked = torch.cat([torch.zeros(1, len(x)), x.T.float()]).to(layer.weight.device)
        dtype = layer.weight.dtype if layer.weight.dtype.is_floating_point else torch.float32
        found = layer.forward(asked.to(dtype)).float().cpu()
        return (found[1:] - found[:1]).T.contiguous()

    A, B = eraser.adapter.source.pair(path, product)
    return A.contiguous(), B


def content(eraser: LoadedEraser) -> list[str | float]:
    """What it does to the weights: its numbers' digest, and the strength."""
    return [digest(*eraser.adapter.source.tensors()), eraser.strength]
