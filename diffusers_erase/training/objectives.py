"""Training objectives, one equation each: which score the student should have at a latent."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from diffusers_erase.errors import ErasureError, require_choice
from diffusers_erase.models.attention_changes import attention_changes
from diffusers_erase.models.trajectories import View
from diffusers_erase.training.inner_loop import Views


Space = Literal["prediction", "x0", "min-snr"]
"""Units in which errors are measured; see `error`."""

Roles = frozenset[tuple[str, str]]
"""Pairs of a view and a role in it."""


def _roles(view: str, *roles: str) -> Roles:
    return frozenset((view, role) for role in roles)


class Objective(Protocol):
    """A scalar loss over the views of one minibatch.

    It may name the `roles` that it reads, and those that it `steers`: whose scores shall change.
    """

    def __call__(self, views: Views) -> Tensor:
        """The loss, with gradients for the student, and for inner loops that learn."""
        ...


def error(view: View, score: Tensor, wanted: Tensor, space: Space = "prediction") -> Tensor:
    """mean_t w_t | score - wanted |^2 over the network's own predictions.

    `prediction`: w = 1; in noise for a network that predicts noise. `x0`: the same error in the
    clean picture, as in AGE's released code; w = 1/snr, snr = ᾱ/(1-ᾱ), for a network that predicts
    noise, so that most of the weight lies on the noisiest latents. `min-snr`: the error in the
    clean picture times min(snr, 5) (arXiv 2303.09556); the cleanest latents count less.
    """
    each = (score - wanted).square().mean((1, 2, 3))
    if space == "prediction":
        return each.mean()
    alpha = view.alpha.flatten().to(each)
    snr = alpha / (1 - alpha)
    clean = {"epsilon": 1 / snr, "v_prediction": 1 - alpha, "sample": torch.ones_like(alpha)}
    weight = clean[view.denoiser.schedule.prediction]
    return (weight * (snr.clamp(max=5) if space == "min-snr" else 1) * each).mean()


@dataclass(frozen=True)
class Steer:
    """|| eps(z,c) - ( eps*(z,τ) - η [eps*(z,c) - eps*(z,τ)] ) ||^2

    The concept's score becomes the target's, and `eta` times further away from its own. With τ the
    prompt without the concept this is ESD's loss in context (arXiv 2303.07345, whose τ is the empty
    prompt and η = 1); with a given target it is the erase term of AGE (arXiv 2501.18950; published
    with η = 0, released with η = 1). The student's score may be that of another role: an
    `adversary` that stands for the concept.
    """

    eta: float = 0.0
    space: Space = "prediction"
    role: str = "concept"
    """Of the student's score."""

    def __post_init__(self) -> None:
        require_choice("`space`", self.space, get_args(Space))

    @property
    def roles(self) -> Roles:
        """The roles it reads."""
        return _roles("concept", "concept", "target", self.role)

    @property
    def steers(self) -> Roles:
        """The role whose score it changes."""
        return _roles("concept", self.role)

    def __call__(self, views: Views) -> Tensor:
        view = views["concept"]
        target = view.teacher("target")
        away = view.teacher("concept") - target
        return error(view, view.student(self.role), target - self.eta * away, self.space)


@dataclass(frozen=True)
class Compose:
    """|| eps(z,p) - ( eps*(z,"") + Σ_j a_j g*(j) ) ||^2

    With g*(j) = eps*(z,j) - eps*(z,""): a score is composed of the guidances of roles j. With
    p = "", a = 3 for the concept and -3 for an anchor it is the unconditional term of anti-editing
    (arXiv 2501.01633); with a concept and the words found for it, STEREO's compositional objective
    (arXiv 2408.16807).
    """

    weights: tuple[tuple[str, float], ...]
    """Roles j and their a_j."""
    role: str = "concept"
    """p, whose student's score it is."""
    space: Space = "prediction"

    def __post_init__(self) -> None:
        require_choice("`space`", self.space, get_args(Space))

    @property
    def roles(self) -> Roles:
        """The roles it reads."""
        return _roles("concept", "null", self.role, *(role for role, _ in self.weights))

    @property
    def steers(self) -> Roles:
        """The role whose score it changes."""
        return _roles("concept", self.role)

    def __call__(self, views: Views) -> Tensor:
        view = views["concept"]
        null = view.teacher("null")
        guidances = (a * (view.teacher(role) - null) for role, a in self.weights)
        return error(view, view.student(self.role), sum(guidances, start=null), self.space)


@dataclass(frozen=True)
class SteerGuidance:
    """|| [eps(z,c) - sg eps(z,"")] - ( g*(τ) - η [g*(c) - g*(τ)] ) ||^2

    The surgical update, with g*(p) = eps*(z,p) - eps*(z,""): only the guidance changes. The
    student's own null score has no gradient (sg), so it is not pulled along, and
    `Keep("null", at="concept")` keeps it near the base's. Reconstructed from the abstract of
    All-but-One (arXiv 2312.12807); τ is its alternative concept, and the prompt without the concept
    where none is given.
    """

    eta: float = 1.0
    space: Space = "prediction"
    roles: ClassVar[Roles] = _roles("concept", "concept", "target", "null")
    steers: ClassVar[Roles] = _roles("concept", "concept")

    def __post_init__(self) -> None:
        require_choice("`space`", self.space, get_args(Space))

    def __call__(self, views: Views) -> Tensor:
        view = views["concept"]
        target = view.teacher("target")
        away = view.teacher("concept") - target
        guidance = target - view.teacher("null") - self.eta * away
        return error(view, view.student("concept"), _own_null(view) + guidance, self.space)


@dataclass(frozen=True)
class ShiftGuidance:
    """|| [eps(z,p) - sg eps(z,"")] - ( g*(p) - η₋ g*(c) + η₊ g*(τ) ) ||^2

    The surgical update for a prompt p around the concept: its guidance minus that of the bare
    concept plus that of the bare target, so that the rest of p, and with it the layout, stays
    (All-but-One, arXiv 2312.12807, reconstructed). Roles: `concept` is p, `bare` the concept alone,
    `bare target` the target alone, which a loop of one's own has to supply.
    """

    minus: float = 1.0
    plus: float = 1.0
    space: Space = "prediction"
    roles: ClassVar[Roles] = _roles("concept", "concept", "null", "bare", "bare target")
    steers: ClassVar[Roles] = _roles("concept", "concept")

    def __post_init__(self) -> None:
        require_choice("`space`", self.space, get_args(Space))

    def __call__(self, views: Views) -> Tensor:
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
    """|| eps(z,k) - eps*(z,k) ||^2 for the role k that should not change, at latents of a view."""

    role: str = "concept"
    at: str = "kept"
    """The view."""
    space: Space = "prediction"

    def __post_init__(self) -> None:
        require_choice("`space`", self.space, get_args(Space))

    @property
    def roles(self) -> Roles:
        """The role it reads."""
        return _roles(self.at, self.role)

    def __call__(self, views: Views) -> Tensor:
        view = views[self.at]
        return error(view, view.student(self.role), view.teacher(self.role), self.space)


@dataclass(frozen=True)
class KeepOutside:
    """mean over layers of Σ_p (1-M_p) mean_channels Δ_p^2 / Σ_p (1-M_p)

    Receler's regulariser (arXiv 2311.17717): Δ is what the eraser changes in the output of a
    cross-attention, and M_p = 1 at the pixels p that show the concept. Here these are found in the
    base's scores: where (eps*(z,c) - eps*(z,τ))^2 is more than `threshold` of its maximum.
    """

    threshold: float = 0.1
    role: str = "concept"
    """Of the student's pass."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ErasureError(f"`threshold` is in 0 .. 1; got {self.threshold}.")

    @property
    def roles(self) -> Roles:
        """The roles it reads."""
        return _roles("concept", "concept", "target", self.role)

    def mask(self, view: View) -> Tensor:
        """1 where a latent shows the concept, else 0, B x 1 x h x w."""
        apart = view.teacher("concept") - view.teacher("target")
        size = apart.square().mean(1, keepdim=True)
        return (size > self.threshold * size.amax((2, 3), keepdim=True)).float()

    def __call__(self, views: Views) -> Tensor:
        view = views["concept"]
        mask = self.mask(view)
        height, width = mask.shape[2:]
        losses = []
        for change in attention_changes(view.denoiser, view.z, view.t, view.states[self.role]):
            coarser = round((height * width / change.shape[1]) ** 0.5)
            shape = (-(-height // coarser), -(-width // coarser))
            outside = 1 - adaptive_max_pool2d(mask, shape).flatten(1)
            size = change.float().square().mean(2) * outside
            losses.append(size.sum() / outside.sum().clamp(min=1))
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class Sum:
    """sum_i λ_i L_i"""

    terms: tuple[tuple[float, Objective], ...]

    @property
    def roles(self) -> Roles:
        """The roles that its terms read, as far as these name them."""
        return frozenset().union(*(getattr(term, "roles", ()) for _, term in self.terms))

    @property
    def steers(self) -> Roles:
        """The roles whose scores its terms change, as far as these name them."""
        return frozenset().union(*(getattr(term, "steers", ()) for _, term in self.terms))

    def __call__(self, views: Views) -> Tensor:
        first, *rest = (weight * term(views) for weight, term in self.terms)
        return sum(rest, start=first)
