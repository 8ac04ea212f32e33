"""Kept latents drawn in proportion to how much the eraser in training has changed their scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.trajectories import Trajectories
from diffusers_erase.training.inner_loop import PassiveLoop, Views
from diffusers_erase.training.targets import TargetContext


@dataclass(frozen=True)
class HardExamples:
    """p(k) ~ E | eps(z,k) - eps*(z,k) |^2 for the kept prompts k

    Hard example mining (arXiv 1604.03540) in the preservation pool: every so many steps the errors
    of all kept prompts are measured, and until then a share of the latents of the view `kept` are
    of prompts drawn by them. The others are drawn uniformly.
    """

    every: int = 30
    """Steps between two measurements, which cost an evaluation of the student per latent."""
    latents: int = 3
    """Of each prompt in a measurement."""
    share: float = 0.75
    """Of the latents that are drawn by the errors."""

    def __post_init__(self) -> None:
        for name in ("every", "latents"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ErasureError(
                    f"`{name}` is a number of 1 or more; got {getattr(self, name)!r}."
                )
        if not isinstance(self.share, int | float) or not 0 <= self.share <= 1:
            raise ErasureError(f"`share` is in 0 .. 1; got {self.share!r}.")

    def begin(self, context: TargetContext, *, seed: int) -> "HardExamplesLoop":
        """The inner loop; it changes nothing if no prompts are kept."""
        return HardExamplesLoop(self, context.denoiser, context.kept, seed)


class HardExamplesLoop(PassiveLoop):
    """Changes which latents the view `kept` has."""

    def __init__(
        self, settings: HardExamples, denoiser: Denoiser, kept: Trajectories | None, seed: int
    ) -> None:
        self.settings, self.seed = settings, seed
        self._denoiser, self._kept = denoiser, kept
        self.errors = torch.empty(0)
        """Mean squared change of the score of each kept prompt when last measured."""
        self._measured = -1

    def __call__(self, step: int, views: Views) -> Views:
        """The view `kept` with some of its latents exchanged."""
        if self._kept is None:
            return views
        if step % self.settings.every == 0 and step != self._measured:
            self.errors, self._measured = self._measure(self._kept, step), step
        rows = views["kept"].rows
        # the rows differ among processes and minibatches, and so do their latents
        chance = self._chance(step, int(rows.sum()))
        errors = self.errors.nan_to_num(1.0, posinf=1.0)  # the loss says that a run diverged
        weights = errors[self._kept.prompt.cpu()] + 1e-12
        hard = torch.multinomial(weights, len(rows), replacement=True, generator=chance)
        exchanged = torch.rand(len(rows), generator=chance) < self.settings.share
        view = self._kept.at(self._denoiser, torch.where(exchanged, hard, rows))
        return {**views, "kept": view}

    def state(self) -> dict[str, Tensor]:
        """The errors that were measured last."""
        return {"errors": self.errors}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.errors = state["errors"]

    @torch.no_grad()
    def _measure(self, kept: Trajectories, step: int) -> Tensor:
        """Error of each prompt at some of its latents, P."""
        prompt, chance = kept.prompt.cpu(), self._chance(step, -1)
        order = torch.randperm(len(kept), generator=chance)
        owners = range(len(kept.states["concept"]))
        rows = torch.cat([order[prompt[order] == p][: self.settings.latents] for p in owners])
        errors = torch.zeros(len(owners))
        for part in rows.split(32):
            view = kept.at(self._denoiser, part)
            change = view.student("concept") - view.teacher("concept")
            errors.index_add_(0, prompt[part], change.float().square().mean((1, 2, 3)).cpu())
        return errors / torch.bincount(prompt[rows], minlength=len(errors))

    def _chance(self, step: int, which: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + 7919 * step + which + 900_001)
