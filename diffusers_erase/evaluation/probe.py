"""What a linear adversary gets back of an erased concept: from weights and texts, no pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import EditedReading
from diffusers_erase.models.architectures import text_layers
from diffusers_erase.models.model import Model


ROUNDING = 1e-9
"""An eraser that moves less leaves keys and values alone: there is nothing to regain."""


@dataclass(frozen=True)
class Probe:
    """How far an eraser puts a concept out of reach of other text states."""

    moved: float
    """Σ |W' c - W c|^2 / Σ |W c|^2: how otherwise the concept's own states are read."""
    residual: float
    """The same for the states c' that come nearest to the concept."""
    size: float
    """|c'| / |c|: how far from ordinary those are."""

    @property
    def regained(self) -> float:
        """1 - residual / moved: the share of the erasure that the adversary undoes."""
        return 1 - self.residual / self.moved if self.moved > ROUNDING else 0.0


@torch.no_grad()
def probe(
    pipe: Any, eraser: EraserAdapter, prompts: Sequence[str], *, bound: float = 1e-3
) -> Probe:
    """Look for states that the erased model reads as the base reads the concept's prompts.

    argmin_c'  Σ_l |W_l' c' - W_l c|^2 + λ |c'|^2   over the layers that read text (RECE, arXiv
    2407.12383). Whoever can set the text states, and not only the prompt, can do as much; every
    edit with a ridge is invertible, so that the residual goes to zero with λ.

    Args:
        pipe: the base, without erasers.
        eraser: trained or solved.
        prompts: about the concept.
        bound: λ, relative to the mean square that is read.

    Raises:
        ErasureError: no prompt.
    """
    if not prompts:
        raise ErasureError("There is no prompt to probe with; name some about the concept.")
    model = Model.of(pipe)
    unet = model.denoiser
    eraser.check(unet)
    reached = set(eraser.paths(unet))
    before = after = across = torch.zeros((), dtype=torch.float64)
    for path, layer in text_layers(unet).items():
        W = layer.weight.detach().double().cpu()
        changed = W + eraser.delta(path, W) if path in reached else W
        before, after, across = (
            before + W.T @ W,
            after + changed.T @ changed,
            across + changed.T @ W,
        )
    reading = EditedReading(before, after, across)
    c = _rows(model.encode(prompts))
    again = reading.regained(c, bound)
    return Probe(reading.apart(c, c), reading.apart(c, again), float(again.norm() / c.norm()))


def _rows(states: Tensor) -> Tensor:
    return states.flatten(0, 1).double().cpu()
