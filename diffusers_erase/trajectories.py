"""Guided trajectories of the frozen model, sampled once, with the scores of that sampling."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffusers_erase.denoiser import Denoiser
from diffusers_erase.errors import ErasureError


@dataclass(frozen=True)
class View:
    """A minibatch of latents, and what the two voices say there to each role.

    A role is a name for the prompt a latent is looked at with: `concept`, `target`, `null` ...
    """

    denoiser: Denoiser
    z: Tensor
    t: Tensor
    states: Mapping[str, Tensor]
    known: Mapping[str, Tensor]

    def teacher(self, role: str) -> Tensor:
        """eps*(z, t, role): looked up where it was kept, else computed."""
        if role in self.known:
            return self.known[role]
        return self.denoiser.teacher(self.z, self.t, self.states[role])

    def student(self, role: str) -> Tensor:
        """eps(z, t, role), with gradients."""
        return self.denoiser.student(self.z, self.t, self.states[role])


@dataclass(frozen=True)
class Trajectories:
    """N latents z_t of sampling runs for P prompts, with the teacher's scores by role.

    `z` N x C x h x w, `t` N, `prompt` N (row of `states`); `states` role -> P x tokens x width;
    `scores` role -> N x C x h x w.
    """

    z: Tensor
    t: Tensor
    prompt: Tensor
    states: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.z)

    def remember(
        self, denoiser: Denoiser, role: str, states: Tensor, *, batch: int = 32
    ) -> "Trajectories":
        """The same latents, also looked at with another prompt each; one evaluation a latent."""
        scores = [
            denoiser.teacher(self.z[rows], self.t[rows], states[self.prompt[rows]])
            for rows in torch.arange(len(self)).split(batch)
        ]
        return replace(
            self,
            states={**self.states, role: states},
            scores={**self.scores, role: torch.cat(scores)},
        )

    def draw(self, denoiser: Denoiser, count: int, generator: torch.Generator) -> View:
        """A random minibatch of independent draws: neighbours in time do not come together."""
        rows = torch.randint(len(self), (count,), generator=generator)
        return View(
            denoiser,
            self.z[rows],
            self.t[rows],
            {role: states[self.prompt[rows]] for role, states in self.states.items()},
            {role: scores[rows] for role, scores in self.scores.items()},
        )


@torch.no_grad()
def sample_trajectories(
    denoiser: Denoiser,
    scheduler: Any,
    states: Tensor,
    null: Tensor,
    *,
    guidance: float = 5.0,
    steps: int = 25,
    seed: int = 0,
    batch: int = 16,
) -> Trajectories:
    """DDIM with classifier-free guidance, one run per prompt: two evaluations a latent, both kept.

    Args:
        denoiser: its teacher samples; the eraser has no say.
        scheduler: the pipeline's; its noise schedule is used with DDIM.
        states: P x tokens x width, the prompts; they become the role `concept`.
        null: 1 x tokens x width, the empty prompt; it becomes the role `null`.
        guidance: scale of classifier-free guidance.
        steps: latents per prompt.
        seed: start noise.
        batch: prompts sampled together.

    Raises:
        ErasureError: the scheduler has no noise schedule of Stable Diffusion's kind.
    """
    if "beta_start" not in scheduler.config:
        raise ErasureError(
            f"'{type(scheduler).__name__}' has no noise schedule that DDIM could follow; set "
            "`pipe.scheduler` to a scheduler of Stable Diffusion."
        )
    # a config that says nothing of clipping means none; DDIM's own default would clip latents
    ddim = DDIMScheduler.from_config({"clip_sample": False, **scheduler.config})
    ddim.set_timesteps(steps)
    unet = denoiser.unet.config
    generator = torch.Generator().manual_seed(seed)
    shape = (len(states), unet.in_channels, unet.sample_size, unet.sample_size)
    noise = torch.randn(shape, generator=generator) * ddim.init_noise_sigma
    kept: dict[str, list[Tensor]] = {"z": [], "t": [], "prompt": [], "concept": [], "null": []}
    for rows in torch.arange(len(states)).split(batch):
        z = noise[rows].to(states.device)
        both = torch.cat([states[rows], null.expand(len(rows), -1, -1)])
        for t in ddim.timesteps:
            scaled = ddim.scale_model_input(z, t)
            times = t.expand(len(rows))
            conditional, empty = denoiser.teacher(
                scaled.repeat(2, 1, 1, 1), times.repeat(2), both
            ).chunk(2)
            for name, value in (
                ("z", scaled),
                ("t", times),
                ("prompt", rows),
                ("concept", conditional),
                ("null", empty),
            ):
                kept[name].append(value)
            z = ddim.step(empty + guidance * (conditional - empty), t, z).prev_sample
    joined = {name: torch.cat(values) for name, values in kept.items()}
    return Trajectories(
        joined["z"],
        joined["t"],
        joined["prompt"],
        {"concept": states, "null": null.expand(len(states), -1, -1)},
        {"concept": joined["concept"], "null": joined["null"]},
    )
