"""DDIM steps with any amount of noise, and DDIM inversion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from diffusers_erase.attacks.attack_run import batches, nth_seed
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.denoising_loss import encode_pictures
from diffusers_erase.models.model import Pipeline


@dataclass(frozen=True)
class DDIMStep:
    """One step of DDIM: from ᾱ at time t to ᾱ' at the time before."""

    t: int
    alpha: Tensor
    """ᾱ."""
    to: Tensor
    """ᾱ'."""

    @property
    def sigma(self) -> Tensor:
        """√( (1-ᾱ')/(1-ᾱ) · (1 - ᾱ/ᾱ') ): the noise that DDPM adds in this step."""
        variance: Tensor = (1 - self.to) / (1 - self.alpha) * (1 - self.alpha / self.to)
        return variance**0.5


def ddim_steps(scheduler: Any, steps: int) -> list[DDIMStep]:
    """The steps of DDIM with a scheduler's noise schedule and spacing of times.

    Raises:
        ErasureError: the scheduler has no noise schedule of Stable Diffusion's kind.
    """
    NoiseSchedule.of(scheduler)
    ddim: Any = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    alphas, length = ddim.alphas_cumprod, ddim.config.num_train_timesteps // steps
    return [
        DDIMStep(t, alphas[t], alphas[t - length] if t >= length else ddim.final_alpha_cumprod)
        for t in ddim.timesteps.tolist()
    ]


def ddim_step(
    z: Tensor,
    eps: Tensor,
    alpha: Tensor,
    to: Tensor,
    s: Tensor | float = 0.0,
    noise: Tensor | None = None,
    clean: Tensor | None = None,
) -> Tensor:
    """√ᾱ' x̂_0 + √max(0, 1-ᾱ'-s²) eps  (+ noise),   x̂_0 = (z - √(1-ᾱ) eps) / √ᾱ.

    Diffusers' DDIM has no maximum and is nan where s² > 1-ᾱ'. The authors of the noise attack take
    the absolute value there, which is another step.

    `to` is ᾱ'; a smaller one than ᾱ inverts. x̂_0 must be given (`clean`) where ᾱ is 0, since noise
    does not determine it there.
    """
    if clean is None:
        clean = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    spread = torch.as_tensor(1 - to - s**2).clamp(min=0) ** 0.5
    latents: Tensor = to**0.5 * clean + spread * eps
    return latents if noise is None else latents + noise


@torch.no_grad()
def sample_ddim(
    sampler: PipelineSampler, cases: Sequence[PromptCase], *, eta: float, scale: float, variant: int
) -> list[Image.Image]:
    """Sample with s = eta σ_t and noise that is `scale` times as large.

    Each picture starts from the latents that its seed gives in the pipeline, and has other noise
    for each `variant`.
    """
    pipe, settings, model = sampler.pipe, sampler.sampling, sampler.model
    denoiser, null = model.noise_predictor(precision=settings.autocast), model.encode([""])
    pictures: list[Image.Image] = []
    for batch in batches(sampler, cases):
        states = model.encode([case.prompt for case in batch])
        z = _normal(pipe, [torch.Generator().manual_seed(a.seed) for a in batch]).to(null.device)
        generators = [torch.Generator().manual_seed(nth_seed(a.seed, variant)) for a in batch]
        for step in ddim_steps(pipe.scheduler, settings.steps):
            eps, clean = _guided(denoiser, z, step, states, null, settings.guidance)
            s = eta * step.sigma
            noise = scale * s * _normal(pipe, generators).to(z) if eta else None
            z = ddim_step(z, eps, step.alpha, step.to, s, noise, clean)
        pictures += _decode(pipe, z)
    return pictures


@torch.no_grad()
def invert_ddim(
    sampler: PipelineSampler, pictures: Sequence[Image.Image], iterations: int = 0
) -> Tensor:
    """Latents from which DDIM without guidance would draw these pictures, N x C x h x w.

    DDIM backwards (arXiv 2010.02502). As in diffusers, the noise of a step is predicted from the
    latents where it begins, at the time where it ends. Each iteration predicts it again, from the
    latents where the step ended, z <- step(z_0, eps(z)): at the fixed point DDIM returns to z_0
    (arXiv 2312.12540). They converge if the network changes little over a step: with too few steps
    more iterations can be worse. 1 + `iterations` evaluations per step and latent.
    """
    settings, model = sampler.sampling, sampler.model
    denoiser, null = model.noise_predictor(precision=settings.autocast), model.encode([""])
    latents = []
    for batch in batches(sampler, pictures):
        z = encode_pictures(sampler.pipe, batch)
        for step in reversed(ddim_steps(sampler.pipe.scheduler, settings.steps)):
            begin = z
            for _ in range(1 + iterations):
                eps, _ = _guided(denoiser, z, step, null.expand(len(z), -1, -1), null, 1.0)
                z = ddim_step(begin, eps, step.to, step.alpha)
        latents.append(z)
    return torch.cat(latents)


@torch.no_grad()
def draw_without_text(sampler: PipelineSampler, latents: Tensor) -> list[Image.Image]:
    """Pictures of DDIM with the empty prompt and no guidance from latents, N x C x h x w.

    The inverse of `invert_ddim`.
    """
    pipe, settings, model = sampler.pipe, sampler.sampling, sampler.model
    denoiser, null = model.noise_predictor(precision=settings.autocast), model.encode([""])
    pictures: list[Image.Image] = []
    for z in latents.split(settings.batch):
        for step in ddim_steps(pipe.scheduler, settings.steps):
            eps, clean = _guided(denoiser, z, step, null.expand(len(z), -1, -1), null, 1.0)
            z = ddim_step(z, eps, step.alpha, step.to, clean=clean)
        pictures += _decode(pipe, z)
    return pictures


def _guided(
    denoiser: Denoiser, z: Tensor, step: DDIMStep, states: Tensor, null: Tensor, guidance: float
) -> tuple[Tensor, Tensor | None]:
    """Noise of the score s("") + g (s(c) - s("")), and its clean latent where ᾱ is 0.

    Two evaluations per latent, one without guidance.
    """
    times = torch.full((len(z),), step.t, device=z.device)
    if guidance <= 1:
        score = denoiser.student(z, times, states)
    else:
        both = torch.cat([null.expand(len(z), -1, -1), states])
        empty, score = denoiser.student(z.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
        score = empty + guidance * (score - empty)
    schedule = denoiser.schedule
    clean = None if step.alpha else schedule.clean(score, z, times)
    return schedule.epsilon(score, z, times), clean


def _normal(pipe: Pipeline, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal latents, one per generator."""
    config = pipe.unet.config
    size = config.sample_size
    plane = (size, size) if isinstance(size, int) else tuple(size)
    shape = (len(generators), config.in_channels, *plane)
    latents: Tensor = randn_tensor(shape, list(generators))
    return latents


def _decode(pipe: Pipeline, z: Tensor) -> list[Image.Image]:
    weights = next(pipe.vae.parameters())
    latents = (z / pipe.vae.config.scaling_factor).to(weights.device, weights.dtype)
    decoded = pipe.vae.decode(latents, return_dict=False)[0]
    pictures: list[Image.Image] = pipe.image_processor.postprocess(decoded, output_type="pil")
    return pictures
