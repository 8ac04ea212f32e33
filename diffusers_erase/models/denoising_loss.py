"""| eps(z_t, t, c) - target |^2: what every attack with gradients makes small."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusers_erase.models.denoiser import Denoiser


def denoising_loss(
    denoiser: Denoiser,
    clean: Tensor,
    states: Tensor,
    t: Tensor,
    noise: Tensor,
    target: Tensor | None = None,
) -> Tensor:
    """| eps(z_t, t, c) - target |^2 of each latent, its mean over pixels;  z_t = √ᾱ x_0 + √(1-ᾱ) n.

    In units of noise, whatever the network predicts, and without guidance.

    Args:
        denoiser: as the pipeline is, erasers and all.
        clean: latents x_0, B x C x h x w.
        states: of the text c, B x tokens x width.
        t: times, B.
        noise: n, as `clean`.
        target: n if omitted; scores of the base for P4D.
    """
    said = denoiser.student(noised(denoiser, clean, t, noise), t, states)
    loss: Tensor = (said - (noise if target is None else target).to(said)).square().flatten(1)
    return loss.mean(1)


def noised(denoiser: Denoiser, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """√ᾱ_t x_0 + √(1-ᾱ_t) n."""
    alpha = denoiser.schedule.alpha(t).to(clean)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise.to(clean)


@torch.no_grad()
def latents_of(pipe: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """Means of the VAE, scaled as the denoiser knows them, N x C x h x w."""
    pixels = pipe.image_processor.preprocess(list(pictures))
    weights = next(pipe.vae.parameters())
    encoded = pipe.vae.encode(pixels.to(weights.device, weights.dtype)).latent_dist.mean
    latents: Tensor = encoded.float() * pipe.vae.config.scaling_factor
    return latents
