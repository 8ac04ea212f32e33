"""The denoising loss | eps(z_t, t, c) - n |^2, which gradient-based attacks minimise."""

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.model import Pipeline


def denoising_loss(
    denoiser: Denoiser,
    clean: Tensor,
    states: Tensor,
    t: Tensor,
    noise: Tensor,
    target: Tensor | None = None,
) -> Tensor:
    """| eps(z_t, t, c) - target |^2, mean over pixels, B;  z_t = √ᾱ x_0 + √(1-ᾱ) n.

    eps is the noise prediction without guidance, whatever the network predicts.

    `clean` is x_0 and `noise` n, B x C x h x w; `states` is c, B x tokens x width; `t` has B times.
    The target is n if omitted; P4D takes noise predictions of the base model.
    """
    predicted = denoiser.noise(noised(denoiser, clean, t, noise), t, states)
    goal = (noise if target is None else target).to(predicted)
    loss: Tensor = (predicted - goal).square().flatten(1).mean(1)
    return loss


def minimised(
    denoiser: Denoiser,
    clean: Tensor,
    parameters: Sequence[Tensor],
    states_of: Callable[[Tensor], Tensor],
    *,
    batch: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Iterator[float]:
    """Minimise E | eps(z_t, t, c) - n |^2 over the parameters by Adam, without end.

    Each step is an update with `batch` random rows of the latents `clean`, N x C x h x w, at random
    times, and yields their mean loss before it. `states_of` makes the text states of these rows,
    batch x tokens x width. Nothing but the parameters gets gradients.
    """
    adam = torch.optim.Adam(parameters, learning_rate)
    while True:
        rows = torch.randint(len(clean), (batch,), generator=generator)
        t = torch.randint(len(denoiser.schedule.alphas), (batch,), generator=generator)
        noise = torch.randn((batch, *clean.shape[1:]), generator=generator)
        with torch.enable_grad():
            loss = denoising_loss(denoiser, clean[rows], states_of(rows), t, noise).mean()
            gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        yield loss.item()


def noised(denoiser: Denoiser, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """√ᾱ_t x_0 + √(1-ᾱ_t) n."""
    alpha = denoiser.schedule.alpha(t).to(clean)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise.to(clean)


@torch.no_grad()
def encode_pictures(pipe: Pipeline, pictures: Sequence[Image.Image]) -> Tensor:
    """Latents of pictures: means of the VAE, scaled for the denoiser, N x C x h x w."""
    pixels = pipe.image_processor.preprocess(list(pictures))
    weights = next(pipe.vae.parameters())
    encoded = pipe.vae.encode(pixels.to(weights.device, weights.dtype)).latent_dist.mean
    latents: Tensor = encoded.float() * pipe.vae.config.scaling_factor
    return latents
