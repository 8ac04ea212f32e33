"""Sampling trajectories of the frozen model, with the scores computed on the way."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffusers_erase.errors import require_choice
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule


Sampler = Literal["ddim", "own"]

NOISED = (0.4, 1.0)
"""Shares of the training times at which pictures are noised: what they show is decided there."""


@dataclass(frozen=True)
class View:
    """A minibatch of latents with the scores of teacher and student there, by prompt role.

    A role names the text states that a latent is denoised with: `concept`, `target`, `null` ...
    """

    denoiser: Denoiser
    z: Tensor
    """Latents, B x C x h x w."""
    t: Tensor
    """Times, B."""
    states: Mapping[str, Tensor]
    """Role -> text states, B x tokens x width."""
    known: Mapping[str, Tensor]
    """Role -> scores of the teacher that were computed before, B x C x h x w."""
    rows: Tensor
    """Row of each latent in its trajectories, B."""

    @property
    def alpha(self) -> Tensor:
        """ᾱ_t of each latent, B x 1 x 1 x 1."""
        return self.denoiser.schedule.alpha(self.t)

    def teacher(self, role: str) -> Tensor:
        """The teacher's score eps*(z, t, role), B x C x h x w; computed unless it is known."""
        if role in self.known:
            return self.known[role]
        return self.denoiser.teacher(self.z, self.t, self._states_of(role))

    def student(self, role: str) -> Tensor:
        """The student's score eps(z, t, role), B x C x h x w, with gradients."""
        return self.denoiser.student(self.z, self.t, self._states_of(role))

    def with_role(self, role: str, states: Tensor, scores: Tensor | None = None) -> "View":
        """The same view with these text states in a role, and the teacher's scores if known."""
        known = {name: score for name, score in self.known.items() if name != role}
        known |= {} if scores is None else {role: scores}
        return replace(self, states={**self.states, role: states}, known=known)

    def _states_of(self, role: str) -> Tensor:
        require_choice("role in this view", role, self.states)
        return self.states[role]


@dataclass(frozen=True)
class Trajectories:
    """N latents z_t of sampling runs for P prompts, with the teacher's scores by role.

    `z` N x C x h x w as the network's input, `t` N, `prompt` N (row of `states`); `states` role ->
    P x tokens x width; `scores` role -> N x C x h x w.
    """

    z: Tensor
    t: Tensor
    prompt: Tensor
    states: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.z)

    def tensors(self) -> dict[str, Tensor]:
        """Latents, times, prompts and scores, by name."""
        scores = {f"score.{role}": score for role, score in self.scores.items()}
        return {"z": self.z, "t": self.t, "prompt": self.prompt, **scores}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], states: Tensor, null: Tensor) -> "Trajectories":
        """The inverse of `tensors` for sampled trajectories of these prompts."""
        return cls(
            tensors["z"],
            tensors["t"],
            tensors["prompt"],
            {"concept": states, "null": null.expand(len(states), -1, -1)},
            {role: tensors[f"score.{role}"] for role in ("concept", "null")},
        )

    def scoreless(self) -> "Trajectories":
        """The same latents without scores: the teacher computes those that are used."""
        return replace(self, scores={})

    def remember(
        self, denoiser: Denoiser, role: str, states: Tensor, *, batch: int = 32
    ) -> "Trajectories":
        """The same latents with another prompt each in a role; one evaluation per latent."""
        scores = [
            denoiser.teacher(self.z[rows], self.t[rows], states[self.prompt[rows]])
            for rows in torch.arange(len(self)).split(batch)
        ]
        known = {**self.scores, role: torch.cat(scores)}
        return replace(self, states={**self.states, role: states}, scores=known)

    @torch.no_grad()
    def with_noised_pictures(
        self, denoiser: Denoiser, count: int, *, guidance: float, seed: int, batch: int = 32
    ) -> "Trajectories":
        """More latents: each run's picture with new noise at `count` times, with both scores there.

        z_t = √ᾱ_t x_0 + √(1-ᾱ_t) n, as attacks noise pictures; one time in each of `count` equal
        parts of `NOISED`. Two evaluations per latent.
        """
        generator = torch.Generator().manual_seed(seed)
        prompts = torch.arange(len(self.states["concept"]))
        each = [torch.nonzero(self.prompt.cpu() == p)[:, 0] for p in prompts]
        last = torch.stack([rows[self.t[rows].argmin()] for rows in each])
        null, concept = self.scores["null"][last], self.scores["concept"][last]
        guided = null + guidance * (concept - null)
        clean = denoiser.schedule.clean(guided, self.z[last], self.t[last])
        owner = prompts.repeat_interleave(count)
        low, high = (share * len(denoiser.schedule.alphas) for share in NOISED)
        part = torch.arange(count).repeat(len(prompts))
        shares = (part + torch.rand(len(owner), generator=generator)) / count
        t = (low + shares * (high - low)).long().to(self.t)
        noise = torch.randn((len(owner), *clean.shape[1:]), generator=generator).to(clean)
        alpha = denoiser.schedule.alpha(t).to(clean)
        z = alpha.sqrt() * clean[owner] + (1 - alpha).sqrt() * noise
        more = replace(self.scoreless(), z=z, t=t, prompt=owner.to(self.prompt))
        for role, states in self.states.items():
            more = more.remember(denoiser, role, states, batch=batch)
        new = more.tensors()
        found = {name: torch.cat((value, new[name])) for name, value in self.tensors().items()}
        return Trajectories.of(found, self.states["concept"], self.states["null"][:1])

    def draw(
        self, denoiser: Denoiser, count: int, generator: torch.Generator, part: slice = slice(None)
    ) -> View:
        """A minibatch of `count` independent random rows, of which a process uses its `part`."""
        rows = torch.randint(len(self), (count,), generator=generator)[part]
        return self.at(denoiser, rows)

    def at(self, denoiser: Denoiser, rows: Tensor) -> View:
        """The view of the latents in these rows."""
        return View(
            denoiser,
            self.z[rows],
            self.t[rows],
            {role: states[self.prompt[rows]] for role, states in self.states.items()},
            {role: scores[rows] for role, scores in self.scores.items()},
            rows,
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
    seed: int | Sequence[int] = 0,
    batch: int = 16,
    sampler: Sampler = "ddim",
    student: bool = False,
) -> Trajectories:
    """Sample with classifier-free guidance, one run per prompt; both scores of a latent are kept.

    Args:
        denoiser: its teacher samples, without the eraser; or its student.
        scheduler: the pipeline's; its noise schedule is used.
        states: P x tokens x width, the prompts; they become the role `concept`.
        null: 1 x tokens x width, the empty prompt; it becomes the role `null`.
        guidance: scale of classifier-free guidance.
        steps: latents per prompt.
        seed: of the start noise: one for all prompts together, or one for each prompt.
        batch: prompts sampled together.
        sampler: `ddim` for DDIM on the scheduler's noise schedule; `own` for the scheduler itself.
        student: whether the student samples (on-policy); its scores are not kept.

    Raises:
        ErasureError: the scheduler has no noise schedule of Stable Diffusion's kind.
    """
    # all schedulers take noise, which is of no use where ᾱ is 0, and v; few take the clean latent
    noise_alone = not NoiseSchedule.of(scheduler).alphas.all()
    to_scheduler = denoiser.schedule.velocity if noise_alone else denoiser.schedule.epsilon
    walk = _sampler(scheduler, sampler, "v_prediction" if noise_alone else "epsilon")
    score = denoiser.student if student else denoiser.teacher
    unet = denoiser.unet.config
    shape = (unet.in_channels, unet.sample_size, unet.sample_size)
    noise = _noise(len(states), shape, seed)
    chance = torch.Generator().manual_seed(seed if isinstance(seed, int) else seed[0])
    takes_chance = "generator" in inspect.signature(walk.step).parameters
    names = ("z", "t", "prompt", "score.concept", "score.null")
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows in torch.arange(len(states)).split(batch):
        walk.set_timesteps(steps)  # schedulers of several steps remember the ones before
        z = noise[rows].to(states.device) * walk.init_noise_sigma
        both = torch.cat([states[rows], null.expand(len(rows), -1, -1)])
        for t in walk.timesteps:
            scaled = walk.scale_model_input(z, t)
            times = t.expand(len(rows))
            conditional, empty = score(scaled.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
            for name, value in zip(names, (scaled, times, rows, conditional, empty), strict=True):
                kept[name].append(value)
            guided = empty + guidance * (conditional - empty)
            guided = to_scheduler(guided, scaled, times)
            options = {"generator": chance} if takes_chance else {}
            z = walk.step(guided, t, z, **options).prev_sample
    found = Trajectories.of({k: torch.cat(values) for k, values in kept.items()}, states, null)
    return found.scoreless() if student else found


def _sampler(scheduler: Any, sampler: Sampler, prediction: str) -> Any:
    """A copy of the scheduler, or DDIM with its schedule, that takes predictions of this type."""
    require_choice("`sampler`", sampler, get_args(Sampler))
    kind = DDIMScheduler if sampler == "ddim" else type(scheduler)
    # a config without `clip_sample` does not clip; DDIM's own default would
    config = {"clip_sample": False, **scheduler.config, "prediction_type": prediction}
    return kind.from_config(config)


def _noise(count: int, shape: tuple[int, ...], seed: int | Sequence[int]) -> Tensor:
    if isinstance(seed, int):
        return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))
    generators = [torch.Generator().manual_seed(each) for each in seed]
    return torch.stack([torch.randn(shape, generator=each) for each in generators])
