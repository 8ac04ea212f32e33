"""How far an eraser moves the scores themselves: no sampling, no detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.model import Model
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.runtime.plugin import erasures_disabled


@dataclass(frozen=True)
class Bank:
    """Latents on the base's own guided runs, and what it says there to each role.

    `states` role -> N x tokens x width, `scores` role -> N x C x h x w; roles are `null`, `target`
    and `keep`.
    """

    z: Tensor
    t: Tensor
    states: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]


@dataclass(frozen=True)
class Drift:
    """D(c) = Σ |eps(z,t,c) - eps*(z,t,c)|^2 / Σ |eps*(z,t,c)|^2  over a bank of latents.

    With guidance s the error on any prompt is (1 - s) d("") + s d(p): a drift of the empty prompt
    reaches every picture, (s - 1)-fold.
    """

    null: float
    keep: float
    target: float
    guidance: float
    """cos(g(z,c), g*(z,c)) of the erased concept, g = eps(z,c) - eps(z,""): 1 if nothing happened,
    0 or less if it is no longer asked for."""

    def plain(self) -> dict[str, float]:
        """For JSON."""
        return {"null": self.null, "keep": self.keep, "target": self.target, "cos": self.guidance}


@torch.no_grad()
def bank(
    pipe: Any,
    target: Sequence[str],
    keep: Sequence[str],
    *,
    steps: int = 10,
    guidance: float = 5.0,
    seed: int = 0,
) -> Bank:
    """Sample the base once, erasers off: half of the runs about the concept, half about the rest.

    Args:
        pipe: with whatever erasers.
        target: prompts about the erased concept.
        keep: as many prompts about other things, which take turns.
        steps: latents a prompt, from noise to picture.
        guidance: of the runs.
        seed: of the runs.

    Raises:
        ErasureError: one of the lists is empty, or the scheduler has no noise schedule.
    """
    if not target or not keep:
        raise ErasureError("Drift is measured on prompts about the concept and others; name both.")
    model = Model.of(pipe)
    denoiser = Denoiser(model.denoiser, model.schedule)
    concept = model.encode(list(target)).cpu()
    kept = model.encode([keep[i % len(keep)] for i in range(len(target))]).cpu()
    null = model.encode([""]).cpu()
    with erasures_disabled(pipe):
        runs = sample_trajectories(
            denoiser,
            model.pipeline.scheduler,
            torch.cat((concept, kept)).to(model.device),
            null.to(model.device),
            steps=steps,
            guidance=guidance,
            seed=seed,
        )
        which = runs.prompt.cpu() % len(target)
        states = {
            "null": null.expand(len(which), -1, -1),
            "target": concept[which],
            "keep": kept[which],
        }
        scores = {role: _said(denoiser, runs.z, runs.t, said) for role, said in states.items()}
    return Bank(runs.z, runs.t, states, scores)


@torch.no_grad()
def drift(pipe: Any, known: Bank) -> Drift:
    """Of the pipeline as it is now, its erasers on."""
    model = Model.of(pipe)
    denoiser = Denoiser(model.denoiser, model.schedule)
    now = {role: _said(denoiser, known.z, known.t, states) for role, states in known.states.items()}

    def moved(role: str) -> float:
        before = known.scores[role].double()
        return float((now[role].double() - before).square().sum() / before.square().sum())

    g, g_before = (
        (scores["target"] - scores["null"]).double().flatten() for scores in (now, known.scores)
    )
    cosine = float(torch.nn.functional.cosine_similarity(g, g_before, 0))
    return Drift(moved("null"), moved("keep"), moved("target"), cosine)


def _said(denoiser: Denoiser, z: Tensor, t: Tensor, states: Tensor, batch: int = 32) -> Tensor:
    rows = torch.arange(len(z)).split(batch)
    return torch.cat([denoiser.teacher(z[k], t[k], states[k]) for k in rows])
