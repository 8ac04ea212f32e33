"""Walks along a noise schedule: down to a picture with as much chance as wanted, and up from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from diffusers_erase.attacks.attack_run import another
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.denoising_loss import latents_of


@dataclass(frozen=True)
class Stride:
    """One step of DDIM: from ᾱ at time t to ᾱ' of the time before."""

    t: int
    alpha: Tensor
    to: Tensor

    @property
    def sigma(self) -> Tensor:
        """√( (1-ᾱ')/(1-ᾱ) · (1 - ᾱ/ᾱ') ): the noise that DDPM adds there."""
        variance: Tensor = (1 - self.to) / (1 - self.alpha) * (1 - self.alpha / self.to)
        return variance**0.5


def strides(scheduler: Any, steps: int) -> list[Stride]:
    """DDIM's, over the noise schedule and the spacing of times that a scheduler has.

    Raises:
        ErasureError: it has none of Stable Diffusion's kind.
    """
    NoiseSchedule.of(scheduler)
    walk: Any = DDIMScheduler.from_config(scheduler.config)
    walk.set_timesteps(steps)
    alphas, length = walk.alphas_cumprod, walk.config.num_train_timesteps // steps
    return [
        Stride(t, alphas[t], alphas[t - length] if t >= length else walk.final_alpha_cumprod)
        for t in walk.timesteps.tolist()
    ]


def stepped(
    z: Tensor,
    eps: Tensor,
    alpha: Tensor,
    to: Tensor,
    s: Tensor | float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """√ᾱ' x̂_0 + √max(0, 1-ᾱ'-s²) eps  (+ noise),   x̂_0 = (z - √(1-ᾱ) eps) / √ᾱ.

    Diffusers' DDIM without the maximum, which is nan where s is larger than all the noise that
    there is to be. Where the authors of the noise attack take the absolute value instead, this is
    another walk than theirs.

    Args:
        z: at ᾱ.
        eps: the noise in it.
        alpha: ᾱ.
        to: ᾱ'; a smaller one walks up.
        s: spread of the noise that is to be added.
        noise: that noise.
    """
    clean = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    spread = torch.as_tensor(1 - to - s**2).clamp(min=0) ** 0.5
    walked: Tensor = to**0.5 * clean + spread * eps
    return walked if noise is None else walked + noise


@torch.no_grad()
def descended(
    sampler: PipelineSampler, asked: Sequence[PromptCase], *, eta: float, scale: float, variant: int
) -> list[Image.Image]:
    """Pictures of a walk with s = eta σ_t, whose noise is `scale` times as large as that.

    A picture starts in the latent that its seed gives it in the pipeline, and has another stream of
    noise for each `variant`.
    """
    pipe, how = sampler.pipe, sampler.sampling
    denoiser, null = (
        sampler.model.noise_predictor(precision=how.autocast),
        sampler.model.encode([""]),
    )
    pictures: list[Image.Image] = []
    for several in _split(asked, how.batch):
        states = sampler.model.encode([a.prompt for a in several])
        z = _normal(pipe, [torch.Generator().manual_seed(a.seed) for a in several]).to(null.device)
        chance = [torch.Generator().manual_seed(another(a.seed, variant)) for a in several]
        for stride in strides(pipe.scheduler, how.steps):
            eps = _score(denoiser, z, stride.t, states, null, how.guidance)
            s = eta * stride.sigma
            noise = scale * s * _normal(pipe, chance).to(z) if eta else None
            z = stepped(z, eps, stride.alpha, stride.to, s, noise)
        pictures += _decoded(pipe, z)
    return pictures


@torch.no_grad()
def ascended(sampler: PipelineSampler, pictures: Sequence[Image.Image]) -> Tensor:
    """Latents from which a walk that no prompt guides would draw these, N x C x h x w.

    DDIM backwards (arXiv 2010.02502): one evaluation a step. The score of a step is taken where it
    begins, at the time where it ends, as in diffusers.
    """
    pipe, how = sampler.pipe, sampler.sampling
    denoiser, null = (
        sampler.model.noise_predictor(precision=how.autocast),
        sampler.model.encode([""]),
    )
    latents = []
    for several in _split(pictures, how.batch):
        z = latents_of(pipe, several)
        for stride in reversed(strides(pipe.scheduler, how.steps)):
            eps = _score(denoiser, z, stride.t, null.expand(len(z), -1, -1), null, 1.0)
            z = stepped(z, eps, stride.to, stride.alpha)
        latents.append(z)
    return torch.cat(latents)


def _score(
    denoiser: Denoiser, z: Tensor, t: int, states: Tensor, null: Tensor, guidance: float
) -> Tensor:
    """eps("") + g (eps(c) - eps("")); two evaluations a latent, or one without guidance."""
    times = torch.full((len(z),), t)
    if guidance <= 1:
        return denoiser.student(z, times, states)
    both = torch.cat([null.expand(len(z), -1, -1), states])
    empty, said = denoiser.student(z.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
    return empty + guidance * (said - empty)


def _normal(pipe: Any, generators: Sequence[torch.Generator]) -> Tensor:
    """N(0, 1), a latent of each generator."""
    known = pipe.unet.config
    size = known.sample_size
    plane = (size, size) if isinstance(size, int) else tuple(size)
    shape = (known.in_channels, *plane)
    return torch.stack([torch.randn(shape, generator=each) for each in generators])


def _decoded(pipe: Any, z: Tensor) -> list[Image.Image]:
    weights = next(pipe.vae.parameters())
    seen = (z / pipe.vae.config.scaling_factor).to(weights.device, weights.dtype)
    decoded = pipe.vae.decode(seen, return_dict=False)[0]
    pictures: list[Image.Image] = pipe.image_processor.postprocess(decoded, output_type="pil")
    return pictures


def _split(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
