"""The loop: draw views, take the loss, descend, let the target climb, yield."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.trajectories import Trajectories
from diffusers_erase.training.checkpoints import Checkpoints
from diffusers_erase.training.objectives import Objective
from diffusers_erase.training.targets import TargetState


@dataclass(frozen=True)
class Pace:
    """How far and how fast."""

    steps: int
    batch: int
    """Latents per view, step and process."""
    learning_rate: float
    clip: float = 1.0
    """Largest norm of the gradient; a longer one is shortened to it."""
    accumulate: int = 1
    """Minibatches per step, one after the other, where memory is short."""

    def rate(self, step: int) -> float:
        """The learning rate falls to a tenth over the run (cosine), so that the end is calm."""
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * (0.1 + 0.9 * fall)


@dataclass(frozen=True)
class Renewal:
    """On-policy training: the student samples the concept's latents anew as it changes."""

    every: int
    """Steps between two samplings; the first steps go with the teacher's latents."""
    sample: Callable[[int], Trajectories]
    """Step -> trajectories of the same prompts at the same times."""


@dataclass(frozen=True)
class Step:
    """What happened in one step."""

    index: int
    loss: float
    choices: tuple[ErasedConcept, ...] = ()
    """What each concept is answered as at present, if a target was passed."""


def train(
    denoiser: Denoiser,
    parameters: Sequence[nn.Parameter],
    trajectories: Mapping[str, Trajectories],
    objective: Objective,
    *,
    pace: Pace,
    answers: TargetState | None = None,
    renewal: Renewal | None = None,
    seed: int = 0,
    accelerator: Any = None,
    checkpoints: Checkpoints | None = None,
) -> Iterator[Step]:
    """Adam on `parameters`, one minibatch per view and step; yields after every step.

    Logging, validation and early stopping belong to the caller, who may leave the loop at any time.
    A run that goes on from its checkpoint ends with the weights of one that was never stopped, bit
    for bit: chance depends on the seed and the step alone.

    Args:
        denoiser: student and teacher.
        parameters: what is trained; nothing else is.
        trajectories: by the name of the view the objective looks at.
        objective: views -> scalar.
        pace: steps, batch, learning rate.
        answers: the target at work in the view `concept`; None if its role `target` is remembered.
        renewal: how the view `concept` is sampled anew, if it is.
        seed: of the draws.
        accelerator: accelerate's, for several processes: each takes its share of every draw, and
            all take the same step.
        checkpoints: where to go on from, and to leave the state at.

    Raises:
        ErasureError: the loss is not a finite number any more; a checkpoint of another run.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    optimiser = torch.optim.Adam(parameters, pace.learning_rate)
    part = slice(rank, None, world)
    weights = next(denoiser.unet.parameters())
    half = weights.dtype is torch.float16 or denoiser.precision is torch.float16
    scaler = torch.amp.GradScaler(weights.device.type, enabled=half)

    def mean(gradient: Tensor) -> Tensor:
        reduced: Tensor = accelerator.reduce(gradient, "mean") if world > 1 else gradient
        return reduced

    latents = _Latents(dict(trajectories), renewal)
    for index in range(_resumed(checkpoints, parameters, optimiser, answers, latents), pace.steps):
        latents.renew(index)
        if answers:
            answers.update(index)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        optimiser.zero_grad()
        total = 0.0
        for _ in range(pace.accumulate):
            kept = latents.now.items()
            views = {k: x.draw(denoiser, pace.batch * world, generator, part) for k, x in kept}
            if answers:
                views["concept"] = answers.answer(views["concept"])
            loss = objective(views) / pace.accumulate
            total += _finite(loss, index)
            scaler.scale(loss).backward()
        _share(parameters, mean)
        optimiser.param_groups[0]["lr"] = pace.rate(index)
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(parameters, pace.clip)
        scaler.step(optimiser)
        scaler.update()
        if answers and answers.parameters:
            views["concept"] = answers.answer(views["concept"], learn=True)
            answers.climb(objective(views), mean)
        done = index + 1
        if checkpoints and rank == 0 and (done % checkpoints.every == 0 or done == pace.steps):
            checkpoints.save(done, _state(parameters, optimiser, answers) | latents.state())
        yield Step(index, total, answers.choices() if answers else ())


@dataclass
class _Latents:
    """Trajectories by view, as they are now."""

    now: dict[str, Trajectories]
    renewal: Renewal | None
    renewed: bool = False

    def renew(self, step: int) -> None:
        """Every so many steps: the student's own."""
        if self.renewal and step and step % self.renewal.every == 0:
            self.now["concept"], self.renewed = self.renewal.sample(step), True

    def state(self) -> dict[str, Tensor]:
        """What a resumed run cannot sample again."""
        return {"latents": self.now["concept"].z} if self.renewed else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if "latents" in state:
            known = self.now["concept"].scoreless()
            self.now["concept"], self.renewed = replace(known, z=state["latents"]), True


def _finite(loss: Tensor, index: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise ErasureError(
            f"The loss is {value} at step {index}; use a lower learning rate, or a "
            "pipeline in float32 or bfloat16."
        )
    return value


def _share(parameters: Sequence[nn.Parameter], mean: Callable[[Tensor], Tensor]) -> None:
    """Every process goes on with the mean of all gradients, sent as one vector."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = mean(torch.cat([g.flatten() for g in gradients]))
    for g, part in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))


def _state(
    parameters: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    answers: TargetState | None,
) -> dict[str, Tensor]:
    state = {}
    for i, p in enumerate(parameters):
        state[f"parameter.{i}"] = p.detach()
        moments = {k: v for k, v in optimiser.state[p].items() if isinstance(v, Tensor)}
        state |= {f"{name}.{i}": value for name, value in moments.items()}
    chosen = answers.state() if answers else {}
    return state | {f"target.{name}": value for name, value in chosen.items()}


def _resumed(
    checkpoints: Checkpoints | None,
    parameters: Sequence[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    answers: TargetState | None,
    latents: _Latents,
) -> int:
    """Steps done before; everything is as it was after them."""
    found = checkpoints.latest() if checkpoints else None
    if found is None:
        return 0
    done, state = found
    names = ("step", "exp_avg", "exp_avg_sq")
    for i, p in enumerate(parameters):
        p.data.copy_(state[f"parameter.{i}"])
        optimiser.state[p] = {
            name: state[f"{name}.{i}"].to("cpu" if name == "step" else p.device) for name in names
        }
    if answers:
        prefix = "target."
        chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        answers.restore(chosen)
    latents.restore(state)
    return done
