"""Text states that regain the concept's keys and values from the eraser in training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import EditedLayers
from diffusers_erase.models.architectures import Factors, text_weights
from diffusers_erase.training.inner_loop import PassiveLoop, Views
from diffusers_erase.training.targets import TargetContext


@dataclass(frozen=True)
class RegeneratedStates:
    """argmin_c'  Σ_l |W_l' c' - W_l c|^2 + λ |c'|^2   over the layers that read text

    RECE's adversary (arXiv 2407.12383) against an eraser that is trained: for each token's state c
    of the concept's prompts, the state c' with which the layers as they are now output nearly what
    the base's did. It costs no evaluation of the UNet. The view `concept` gets the role `role`.
    """

    bound: float = 1e-3
    """λ, relative to the mean of the diagonal of Σ W^T W."""
    role: str = "adversary"

    def __post_init__(self) -> None:
        if not isinstance(self.bound, int | float) or not 0 < self.bound < float("inf"):
            raise ErasureError(f"`bound` must be a positive number; got {self.bound!r}.")

    def begin(self, context: TargetContext, *, seed: int) -> "RegeneratedStatesLoop":
        """The inner loop.

        Raises:
            ErasureError: no factors of a LoRA in training are given.
        """
        if context.factors is None:
            raise ErasureError("Regenerated states need a context with `factors`, the LoRA's.")
        return RegeneratedStatesLoop(self, context, context.factors)


class RegeneratedStatesLoop(PassiveLoop):
    """Adds the states to the view `concept`."""

    def __init__(
        self,
        settings: RegeneratedStates,
        context: TargetContext,
        factors: Callable[[], Mapping[str, Factors]],
    ) -> None:
        self.settings, self._factors = settings, factors
        weights = text_weights(context.denoiser.unet)
        self._weights = {path: W.detach().cpu().double() for path, W in weights.items()}
        rows = torch.cat([*self._weights.values()])
        self._gram = rows.T @ rows

    def __call__(self, step: int, views: Views) -> Views:
        """The view `concept` with the role of the settings."""
        view = views["concept"]
        states = view.states["concept"]
        flat = states.flatten(0, 1).cpu().double()
        found = self._layers().regained(flat, self.settings.bound)
        near = found.to(states).unflatten(0, states.shape[:2])
        return {**views, "concept": view.with_role(self.settings.role, near)}

    def _layers(self) -> EditedLayers:
        """Gram matrices of the layers that read text, of the base and of the student."""
        changes = (
            (self._weights[path], A.double(), B.double())
            for path, (A, B) in self._factors().items()
            if path in self._weights
        )
        return EditedLayers.with_factors(self._gram, changes)
