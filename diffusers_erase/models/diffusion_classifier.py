"""The denoiser as a zero-shot classifier: which of two prompts explains a picture better."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusers_erase.models.denoiser import Denoiser


TIMES = (0.4, 0.55)
"""Times at which objects and styles are classified, as shares of the training times."""


@torch.no_grad()
def evidence(
    denoiser: Denoiser,
    clean: Tensor,
    prompt: Tensor,
    others: Sequence[Tensor],
    *,
    times: Sequence[float] | Tensor = TIMES,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Σ_t |ε - eps(z_t,b)|^2 - |ε - eps(z_t,a)|^2  over  Σ_t |eps(z_t,a) - eps(z_t,b)|^2

    z_t is the clean latent with noise ε. The numerator estimates the log-likelihood ratio of two
    prompts ("Your diffusion model is secretly a zero-shot classifier", arXiv 2303.16203); its
    expected value is the denominator for pictures of a, and minus that for pictures of b.

    Args:
        denoiser: classifies by its teacher.
        clean: latents of pictures, B x C x h x w.
        prompt: text states of a, B x tokens x width.
        others: text states of each b, B x tokens x width each.
        times: shares of the training times, as `TIMES`; or a tensor with a row of shares for each
            picture.
        seed: of the noise.

    Returns:
        The ratio, others x B, and its denominator, the distance of both prompts, others x B. The
        ratio is 0 where every prediction is farther from the noise than 0 is: the model knows none.
    """
    generator = torch.Generator().manual_seed(seed)
    schedule, count = denoiser.schedule, 1 + len(others)
    states = torch.cat((prompt, *others))
    gains, apart, blind = [], [], torch.zeros(len(clean))
    shares = torch.as_tensor(times).expand(len(clean), -1)
    for t in (shares * (len(schedule.alphas) - 1)).round().long().unbind(1):
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        alpha = schedule.alpha(t).to(clean.device)
        z = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).repeat(count, 1, 1, 1)
        t = t.repeat(count)
        epsilon = schedule.epsilon(denoiser.teacher(z, t, states), z, t.to(z.device))
        a, *each = epsilon.cpu().chunk(count)
        errors = [(x - noise.cpu()).square().mean((1, 2, 3)) for x in (a, *each)]
        blind += torch.stack(errors).amin(0) - noise.cpu().square().mean((1, 2, 3))
        gains.append(torch.stack([error - errors[0] for error in errors[1:]]))
        apart.append(torch.stack([(x - a).square().mean((1, 2, 3)) for x in each]))
    distance = torch.stack(apart).sum(0)
    ratio = torch.stack(gains).sum(0) / distance.clamp(min=1e-12)
    return ratio.where(blind < 0, 0.0), distance
