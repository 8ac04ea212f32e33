"""One equation each: what the student should say at a latent, given what the teacher says there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import mse_loss

from diffusers_erase.trajectories import View


class Objective(Protocol):
    """A scalar loss over the views of one step: `concept`, and what else the recipe samples."""

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        """The loss, with gradients to the student only."""
        ...


@dataclass(frozen=True)
class Steer:
    """|| eps(z,c) - ( eps*(z,τ) - η [eps*(z,c) - eps*(z,τ)] ) ||^2

    The concept is answered as its target would be, and `eta` times further away from itself. With τ
    the prompt without the concept this is ESD's loss in context (arXiv 2303.07345, whose τ is the
    empty prompt and η = 1); with a target that somebody chose it is the erase term of AGE (arXiv
    2501.18950; published with η = 0, released with η = 1).
    """

    eta: float = 0.0

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        view = views["concept"]
        target = view.teacher("target")
        away = view.teacher("concept") - target
        return mse_loss(view.student("concept"), target - self.eta * away)


@dataclass(frozen=True)
class Keep:
    """|| eps(z,k) - eps*(z,k) ||^2 for the role k that must not move, at latents of view `at`."""

    role: str = "concept"
    at: str = "kept"

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        view = views[self.at]
        return mse_loss(view.student(self.role), view.teacher(self.role))


@dataclass(frozen=True)
class Sum:
    """sum_i λ_i L_i"""

    terms: tuple[tuple[float, Objective], ...]

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        first, *rest = (weight * term(views) for weight, term in self.terms)
        return sum(rest, start=first)
