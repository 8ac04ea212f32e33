"""One UNet, two voices: the teacher is the base model, the student has the eraser on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


class Denoiser:
    """eps*(z, t, c) and eps(z, t, c) from a single set of weights.

    `evaluations` counts batch-1 forward passes, the unit in which costs are reported.
    """

    def __init__(
        self,
        unet: Any,
        silenced: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        precision: torch.dtype | None = None,
    ) -> None:
        """`silenced` turns the eraser off inside its block; `precision` is autocast's, if any."""
        self.unet, self.silenced, self.precision = unet, silenced, precision
        self.evaluations = 0

    @torch.no_grad()
    def teacher(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """eps*(z, t, c), B x C x h x w float32, with the eraser off."""
        with self.silenced():
            return self._score(z, t, states)

    def student(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """eps(z, t, c), B x C x h x w float32, with the eraser on and gradients."""
        return self._score(z, t, states)

    def _score(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        self.evaluations += len(z)
        weights = next(self.unet.parameters())
        z, states = z.to(weights.device, weights.dtype), states.to(weights.device, weights.dtype)
        with torch.autocast(z.device.type, self.precision, enabled=self.precision is not None):
            score: Tensor = self.unet(z, t.to(z.device), states, return_dict=False)[0]
        return score.float()
