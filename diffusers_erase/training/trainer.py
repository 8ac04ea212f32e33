"""The loop: draw views, take the loss, descend, yield."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from diffusers_erase.denoiser import Denoiser
from diffusers_erase.errors import ErasureError
from diffusers_erase.training.objectives import Objective
from diffusers_erase.trajectories import Trajectories


@dataclass(frozen=True)
class Step:
    """What happened in one step."""

    index: int
    loss: float


def train(
    denoiser: Denoiser,
    parameters: Sequence[nn.Parameter],
    trajectories: Mapping[str, Trajectories],
    objective: Objective,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int = 0,
) -> Iterator[Step]:
    """Adam on `parameters`, one minibatch per view and step; yields after every step.

    Logging, validation and early stopping belong to the caller, who may leave the loop at any time.

    Args:
        denoiser: student and teacher.
        parameters: what is trained; nothing else is.
        trajectories: by the name of the view the objective looks at.
        objective: views -> scalar.
        steps: how many.
        batch: latents per view.
        learning_rate: falls to a tenth over the run (cosine), so that the end is calm.
        seed: of the draws.

    Raises:
        ErasureError: the loss is not a finite number any more.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(parameters, learning_rate)
    weights = next(denoiser.unet.parameters())
    scaler = torch.amp.GradScaler(weights.device.type, enabled=weights.dtype is torch.float16)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, learning_rate / 10)
    for index in range(steps):
        views = {name: kept.draw(denoiser, batch, generator) for name, kept in trajectories.items()}
        loss = objective(views)
        if not torch.isfinite(loss):
            raise ErasureError(
                f"The loss is {loss.item()} at step {index}; use a lower learning rate, or a "
                "pipeline in float32 or bfloat16."
            )
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        schedule.step()
        yield Step(index, loss.item())
