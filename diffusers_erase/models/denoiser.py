"""Predictions of the frozen base (teacher) and of the model with the eraser (student)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


@dataclass(frozen=True)
class NoiseSchedule:
    """z_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε, and which of these the network predicts."""

    alphas: Tensor
    """ᾱ of every integer training time, falling from 1."""
    prediction: str = "epsilon"
    """`epsilon`, `v_prediction` (√ᾱ ε - √(1-ᾱ) x_0) or `sample` (x_0)."""

    @classmethod
    def of(cls, scheduler: Any) -> "NoiseSchedule":
        """The noise schedule of a DDPM-type scheduler.

        Raises:
            ErasureError: the scheduler has no such schedule.
        """
        alphas = getattr(scheduler, "alphas_cumprod", None)
        prediction = scheduler.config.get("prediction_type", "epsilon")
        if "beta_start" not in scheduler.config or not isinstance(alphas, Tensor):
            raise ErasureError(
                f"'{type(scheduler).__name__}' has no noise schedule of Stable Diffusion's kind; "
                "set `pipe.scheduler` to one that has, for example DDIMScheduler."
            )
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ErasureError(
                f"'{type(scheduler).__name__}' says the model predicts {prediction!r}; "
                "known: epsilon, v_prediction, sample."
            )
        if prediction == "epsilon" and not alphas.all():
            raise ErasureError(
                f"The schedule of '{type(scheduler).__name__}' ends in noise alone, of which a "
                "prediction of noise tells nothing; set its `rescale_betas_zero_snr` to False, or "
                "its `prediction_type` to what the model predicts, such as 'v_prediction'."
            )
        return cls(alphas.float().cpu(), prediction)

    def alpha(self, t: Tensor) -> Tensor:
        """ᾱ_t, B x 1 x 1 x 1; √(1/ᾱ - 1) is interpolated between integer times, as Euler does."""
        sigmas = (1 / self.alphas.double() - 1).sqrt()
        times = t.detach().double().cpu().clamp(0, len(sigmas) - 1)
        low = times.floor().long()
        high = (low + 1).clamp(max=len(sigmas) - 1)
        between = torch.lerp(sigmas[low], sigmas[high], times - low)
        sigma = torch.where(times == low, sigmas[low], between)  # ᾱ may end at 0, a sigma of inf
        return (1 / (sigma.square() + 1)).float().view(-1, 1, 1, 1).to(t.device)

    def epsilon(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The noise in z_t according to the network's prediction."""
        if self.prediction == "epsilon":
            return output
        alpha = self.alpha(t).to(z.device)
        if self.prediction == "sample":
            return (z - alpha.sqrt() * output) / (1 - alpha).sqrt()
        return alpha.sqrt() * output + (1 - alpha).sqrt() * z

    def clean(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The clean latent x_0 according to the network's prediction; at ᾱ = 0 too."""
        if self.prediction == "sample":
            return output
        alpha = self.alpha(t).to(z.device)
        if self.prediction == "v_prediction":
            return alpha.sqrt() * z - (1 - alpha).sqrt() * output
        return (z - (1 - alpha).sqrt() * output) / alpha.sqrt()

    def velocity(self, output: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The v = √ᾱ ε - √(1-ᾱ) x_0 of a network that predicts v or x_0; defined at ᾱ = 0 too."""
        if self.prediction == "v_prediction":
            return output
        alpha = self.alpha(t).to(z.device)
        return (alpha.sqrt() * z - output) / (1 - alpha).sqrt()


class Denoiser:
    """Scores eps*(z, t, c) without and eps(z, t, c) with the eraser, from one UNet.

    Scores are the network's own predictions: noise, v or the clean latent; where ᾱ is 0, as at the
    first latent of a zero-terminal-SNR schedule, noise would not determine the picture.
    `evaluations` counts forward passes of one latent, `backwards` those with gradients.
    """

    def __init__(
        self,
        unet: Any,
        schedule: NoiseSchedule,
        adapter_disabled: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        precision: torch.dtype | None = None,
    ) -> None:
        """`adapter_disabled` is a context without the eraser; `precision` is that of autocast."""
        self.unet, self.schedule = unet, schedule
        self.adapter_disabled, self.precision = adapter_disabled, precision
        self.evaluations, self.backwards = 0, 0

    @property
    def cost(self) -> int:
        """Cost in UNet evaluations: a forward pass counts one, a backward pass two."""
        return self.evaluations + 2 * self.backwards

    def teacher(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """eps*(z, t, c), B x C x h x w float32, with the eraser off.

        Differentiable in the text states where these ask for it, and in nothing else.
        """
        with torch.set_grad_enabled(states.requires_grad), self.adapter_disabled():
            return self._score(z, t, states)

    def student(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """eps(z, t, c), B x C x h x w float32, with the eraser on and gradients."""
        self.backwards += len(z) if torch.is_grad_enabled() else 0
        return self._score(z, t, states)

    def noise(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """The noise in z according to the student, whatever the network predicts."""
        score = self.student(z, t, states)
        return self.schedule.epsilon(score, z.to(score), t.to(score.device))

    def _score(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        self.evaluations += len(z)
        weights = next(self.unet.parameters())
        z, t, states = z.to(weights), t.to(weights.device), states.to(weights)
        with torch.autocast(t.device.type, self.precision, enabled=self.precision is not None):
            output: Tensor = self.unet(z, t, states, return_dict=False)[0]
        return output.float()


@contextmanager
def counted(unet: Any) -> Iterator[Callable[[], int]]:
    """Count the evaluations of a UNet in a `with` block, all callers together.

    A forward pass of one latent counts one, and three if its output has a graph for a backward.
    """
    total = [0]

    def count(module: Any, arguments: Any, output: Any) -> None:
        score = output[0] if isinstance(output, tuple) else output.sample
        total[0] += len(score) * (3 if score.requires_grad else 1)

    handle = unet.register_forward_hook(count)
    try:
        yield lambda: total[0]
    finally:
        handle.remove()
