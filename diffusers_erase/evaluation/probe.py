"""The probe measures, from weights and texts alone, how much other text states undo."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.gram import lower_gram, mirrored
from diffusers_erase.linalg.inverse import EditedLayers
from diffusers_erase.models.architectures import text_layers
from diffusers_erase.models.model import Model


OUTPUTS = 16
"""Number of outputs of the layers that are read at least, relative to the width of the text."""

_SUMMED = 4096
"""Outputs that are summed in float32 before they are added in float64."""

ROUNDING = 1e-9
"""Least relative change of keys and values that counts as an erasure; less is rounding."""


@dataclass(frozen=True)
class Probe:
    """The erased layers W' output for text states c' nearly what W did for the concept's c."""

    moved: float
    """Σ |W' c - W c|^2 / Σ |W c|^2: relative change of the concept's keys and values."""
    residual: float
    """Σ |W' c' - W c|^2 / Σ |W c|^2: what remains of that change for the best c'."""
    size: float
    """|c'| / |c|: the further from 1, the less c' is like a state of the text encoder."""

    @property
    def regained(self) -> float:
        """1 - residual / moved: the share of the change that c' undoes."""
        return 1 - self.residual / self.moved if self.moved > ROUNDING else 0.0


@torch.no_grad()
def probe(
    pipe: Any, eraser: EraserAdapter, prompts: Sequence[str], *, bound: float = 1e-3
) -> Probe:
    """argmin_c'  Σ_l |W_l' c' - W_l c|^2 + λ |c'|^2   over the layers that read text (RECE).

    Text states that make the erased layers output what they did for the concept's prompts (arXiv
    2407.12383). An attacker who sets the text states, and not only the prompt, achieves as much.
    Every edit with a ridge is invertible, so the residual goes to zero with λ.

    Of encoders that can end prompts early, the states are those of the prompts' own tokens. Of
    large models every k-th output of the layers is read, `OUTPUTS` times the width of the text.
    The pipeline has no erasers; λ is `bound` times the mean of the diagonal of Σ W^T W.
    """
    if not prompts:
        raise ErasureError("No prompts to probe with; give some about the concept.")
    model = Model.of(pipe)
    eraser.check(model.denoiser)
    reading = _reading(model.denoiser, eraser)
    states = model.first(prompts, model.longest(prompts)) if model.ends_early else None
    c = (model.encode(prompts) if states is None else states).flatten(0, 1).double().cpu()
    best = reading.regained(c, bound)
    return Probe(
        reading.relative_error(c, c), reading.relative_error(c, best), float(best.norm() / c.norm())
    )


def _reading(denoiser: nn.Module, eraser: EraserAdapter) -> EditedLayers:
    """Gram matrices of the layers that read text, before and after the erasure, over some outputs.

    A text map changes them all alike, and needs only those before.
    """
    layers, T = text_layers(denoiser), eraser.text_map
    reached = set(eraser.paths(denoiser))
    some = next(iter(layers.values()))
    every = max(
        1, sum(each.out_features for each in layers.values()) // some.in_features // OUTPUTS
    )
    before, after, across = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    rows: list[Tensor] = []
    edited: list[Tensor] = []
    for index, (path, layer) in enumerate(layers.items()):
        rows.append(layer.weight.detach()[index % every :: every].cpu().float())
        if T is None:
            edited.append(rows[-1])
            if path in reached:
                A, B = eraser.pair(path, layer.weight.detach())
                edited[-1] = rows[-1] + (B[index % every :: every] @ A).cpu().float()
        if sum(map(len, rows)) > _SUMMED or index == len(layers) - 1:
            W = torch.cat(rows)
            before = before + lower_gram(W)
            if T is None:
                changed = torch.cat(edited)
                after, across = after + lower_gram(changed), across + (changed.T @ W).double()
            rows, edited = [], []
    if T is not None:
        return EditedLayers.mapped(mirrored(before), T.U, T.V)
    return EditedLayers(mirrored(before), mirrored(after), across)
