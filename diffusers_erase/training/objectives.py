"""One equation each: what the student should say at a latent, given what the teacher says there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from diffusers_erase.models.trajectories import View


Space = Literal["eps", "x0", "min-snr"]
"""Where errors are measured; see `error`."""


class Objective(Protocol):
    """A scalar loss over the views of one step: `concept`, and what else the recipe samples."""

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        """The loss, with gradients to the student, and to a target that learns."""
        ...


def error(view: View, said: Tensor, wanted: Tensor, space: Space = "eps") -> Tensor:
    """mean_t w_t | said - wanted |^2 over noise predictions.

    `eps`: w = 1. `x0`: w = (1-ᾱ)/ᾱ, the same error seen on the clean picture, as AGE's released
    code has it; most of the weight lies on the noisiest latents. `min-snr`: w = min(snr, 5)/snr,
    snr = ᾱ/(1-ᾱ) (arXiv 2303.09556); the cleanest latents count less.
    """
    each = (said - wanted).square().mean((1, 2, 3))
    if space == "eps":
        return each.mean()
    snr = (view.alpha / (1 - view.alpha)).flatten()
    weight = 1 / snr if space == "x0" else snr.clamp(max=5) / snr
    return (weight * each).mean()


@dataclass(frozen=True)
class Steer:
    """|| eps(z,c) - ( eps*(z,τ) - η [eps*(z,c) - eps*(z,τ)] ) ||^2

    The concept is answered as its target would be, and `eta` times further away from itself. With τ
    the prompt without the concept this is ESD's loss in context (arXiv 2303.07345, whose τ is the
    empty prompt and η = 1); with a target that somebody chose it is the erase term of AGE (arXiv
    2501.18950; published with η = 0, released with η = 1).
    """

    eta: float = 0.0
    space: Space = "eps"

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        view = views["concept"]
        target = view.teacher("target")
        away = view.teacher("concept") - target
        return error(view, view.student("concept"), target - self.eta * away, self.space)


@dataclass(frozen=True)
class SteerGuidance:
    """|| [eps(z,c) - sg eps(z,"")] - ( g*(τ) - η [g*(c) - g*(τ)] ) ||^2

    The surgical update, with g*(p) = eps*(z,p) - eps*(z,""): the guidance term absorbs the edit.
    The student's own null score is held fixed (sg), so it is never pulled along, and
    `Keep("null", at="concept")` holds it to the base's. Reconstructed from the abstract of
    All-but-One (arXiv 2312.12807); τ is its alternative concept, and the prompt without the concept
    where none is given.
    """

    eta: float = 1.0
    space: Space = "eps"

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        view = views["concept"]
        target = view.teacher("target")
        away = view.teacher("concept") - target
        guidance = target - view.teacher("null") - self.eta * away
        return error(view, view.student("concept"), _own_null(view) + guidance, self.space)


@dataclass(frozen=True)
class ShiftGuidance:
    """|| [eps(z,p) - sg eps(z,"")] - ( g*(p) - η₋ g*(c) + η₊ g*(τ) ) ||^2

    The surgical update for a prompt p around the concept: its guidance minus that of the bare
    concept plus that of the bare target, so that what else p says, and with it the layout, stays
    (All-but-One, arXiv 2312.12807, reconstructed). Roles: `concept` is p, `bare` the concept by
    itself, `bare target` the target by itself.
    """

    minus: float = 1.0
    plus: float = 1.0
    space: Space = "eps"

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        view = views["concept"]
        null = view.teacher("null")
        concept, target = view.teacher("bare") - null, view.teacher("bare target") - null
        guidance = view.teacher("concept") - null - self.minus * concept + self.plus * target
        return error(view, view.student("concept"), _own_null(view) + guidance, self.space)


def _own_null(view: View) -> Tensor:
    with torch.no_grad():
        return view.student("null")


@dataclass(frozen=True)
class Keep:
    """|| eps(z,k) - eps*(z,k) ||^2 for the role k that must not move, at latents of view `at`."""

    role: str = "concept"
    at: str = "kept"
    space: Space = "eps"

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        view = views[self.at]
        return error(view, view.student(self.role), view.teacher(self.role), self.space)


@dataclass(frozen=True)
class Sum:
    """sum_i λ_i L_i"""

    terms: tuple[tuple[float, Objective], ...]

    def __call__(self, views: Mapping[str, View]) -> Tensor:
        first, *rest = (weight * term(views) for weight, term in self.terms)
        return sum(rest, start=first)
