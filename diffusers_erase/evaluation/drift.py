"""Drift is the mean change of the noise predictions by an eraser, without any detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.model import Model, Pipeline
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.runtime.plugin import erasures_disabled


@dataclass(frozen=True)
class BasePredictions:
    """Latents on guided trajectories of the base model, with its noise predictions there."""

    z: Tensor
    """N x C x h x w."""
    t: Tensor
    """N."""
    states: Mapping[str, Tensor]
    """Role (`null`, `target`, `keep`) -> text states, N x tokens x width."""
    scores: Mapping[str, Tensor]
    """Role -> noise predictions, N x C x h x w."""


@dataclass(frozen=True)
class Drift:
    """Σ |eps(z,t,c) - eps*(z,t,c)|^2 / Σ |eps*(z,t,c)|^2  for three kinds of prompts c.

    With guidance s the error on a prompt p is (1 - s) d("") + s d(p): a drift of the empty prompt
    reaches every picture, (s - 1)-fold.
    """

    null: float
    """Drift on the empty prompt."""
    keep: float
    """Drift on prompts about other concepts."""
    target: float
    """Drift on prompts about the erased concept."""
    guidance: float
    """cos(g(z,c), g*(z,c)) of the erased concept, g = eps(z,c) - eps(z,""): 1 without an eraser, 0
    or less if guidance no longer leads to the concept."""

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"null": self.null, "keep": self.keep, "target": self.target, "cos": self.guidance}


@torch.no_grad()
def base_predictions(
    pipe: Pipeline,
    target: Sequence[str],
    keep: Sequence[str],
    *,
    steps: int = 10,
    guidance: float = 5.0,
    seed: int = 0,
) -> BasePredictions:
    """Sample the base model: half of the trajectories about the concept, half about the rest.

    The pipeline's erasers are disabled meanwhile. `target` are prompts about the erased concept,
    `keep` prompts about others, which take turns if they are fewer.
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
        rows = runs.prompt.cpu() % len(target)
        states = {
            "null": null.expand(len(rows), -1, -1),
            "target": concept[rows],
            "keep": kept[rows],
        }
        scores = {role: _scores(denoiser, runs.z, runs.t, c) for role, c in states.items()}
    return BasePredictions(runs.z, runs.t, states, scores)


@torch.no_grad()
def drift(pipe: Pipeline, base: BasePredictions) -> Drift:
    """The drift of the pipeline with the erasers that are loaded."""
    model = Model.of(pipe)
    denoiser = Denoiser(model.denoiser, model.schedule)
    scores = {role: _scores(denoiser, base.z, base.t, c) for role, c in base.states.items()}

    def moved(role: str) -> float:
        before = base.scores[role].double()
        return float((scores[role].double() - before).square().sum() / before.square().sum())

    g, g_base = (
        (each["target"] - each["null"]).double().flatten() for each in (scores, base.scores)
    )
    cosine = float(torch.nn.functional.cosine_similarity(g, g_base, 0))
    return Drift(moved("null"), moved("keep"), moved("target"), cosine)


def _scores(denoiser: Denoiser, z: Tensor, t: Tensor, states: Tensor, batch: int = 32) -> Tensor:
    rows = torch.arange(len(z)).split(batch)
    return torch.cat([denoiser.teacher(z[k], t[k], states[k]) for k in rows])
