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
from diffusers_erase.storage.tensor_cache import TensorCache, digest


OUTPUTS = 16
"""Number of outputs of the layers that are read at least, relative to the width of the text."""

_SUMMED = 8192
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
    pipe: Any,
    eraser: EraserAdapter,
    prompts: Sequence[str],
    *,
    bound: float = 1e-3,
    cache: TensorCache | None = None,
) -> Probe:
    """argmin_c'  Σ_l |W_l' c' - W_l c|^2 + λ |c'|^2   over the layers that read text (RECE).

    Text states that make the erased layers output what they did for the concept's prompts (arXiv
    2407.12383). An attacker who sets the text states, and not only the prompt, achieves as much.
    Every edit with a ridge is invertible, so the residual goes to zero with λ.

    Of encoders that can end prompts early, the states are those of the prompts' own tokens. Of
    large models every k-th output of the layers is read, `OUTPUTS` times the width of the text.
    The pipeline has no erasers; λ is `bound` times the mean of the diagonal of Σ W^T W, which does
    not depend on the eraser and is found in `cache` once it was computed with it.
    """
    if not prompts:
        raise ErasureError("No prompts to probe with; give some about the concept.")
    model = Model.of(pipe)
    eraser.check(model.denoiser)
    reading = _reading(model.denoiser, eraser, cache)
    states = model.first(prompts, model.longest(prompts)) if model.ends_early else None
    c = (model.encode(prompts) if states is None else states).flatten(0, 1).double().cpu()
    best = reading.regained(c, bound)
    return Probe(
        reading.relative_error(c, c), reading.relative_error(c, best), float(best.norm() / c.norm())
    )


def _reading(denoiser: nn.Module, eraser: EraserAdapter, cache: TensorCache | None) -> EditedLayers:
    """Gram matrices of the layers that read text, before and after the erasure, over some outputs.

    A text map changes them all alike. Of a LoRA only products with its factors are computed.
    """
    layers, T = text_layers(denoiser), eraser.text_map
    some = next(iter(layers.values()))
    outputs = sum(each.out_features for each in layers.values())
    every = max(1, outputs // some.in_features // OUTPUTS)
    rows = {
        path: layer.weight.detach()[index % every :: every].cpu().float()
        for index, (path, layer) in enumerate(layers.items())
    }
    G = _gram([*rows.values()], cache)
    if T is not None:
        return EditedLayers.mapped(G, T.U, T.V)
    reached, changes = {*eraser.paths(denoiser)}, []
    for index, (path, layer) in enumerate(layers.items()):
        if path in reached:
            A, B = (x.cpu().float() for x in eraser.pair(path, layer.weight.detach()))
            changes.append((rows[path], A, B[index % every :: every]))
    return EditedLayers.with_factors(G, changes)


def _gram(rows: Sequence[Tensor], cache: TensorCache | None) -> Tensor:
    """Σ W^T W over rows W, width x width, float64; products with a vector name it in the cache."""

    def made() -> dict[str, Tensor]:
        total, waiting = None, list[Tensor]()
        for index, each in enumerate(rows, 1):
            waiting.append(each)
            if sum(map(len, waiting)) > _SUMMED or index == len(rows):
                total, waiting = lower_gram(torch.cat(waiting), total), []
        assert total is not None
        return {"gram": mirrored(total)}

    if cache is None:
        return made()["gram"]
    x = torch.randn(rows[0].shape[1], generator=torch.Generator().manual_seed(0))
    return cache.get({"read by": digest(*(W @ x for W in rows))}, made)["gram"]
