"""The training loop: draw views, let inner loops change them, descend, let them learn, yield."""

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
from diffusers_erase.training.inner_loop import InnerLoop, Views
from diffusers_erase.training.objectives import Objective


@dataclass(frozen=True)
class Pace:
    """Number of steps, batch size and learning rate."""

    steps: int
    batch: int
    """Latents per view, minibatch and process."""
    learning_rate: float
    """Learning rate of the first step; it falls to a tenth of that by a cosine."""
    clip: float = 1.0
    """Largest norm of the gradient; a longer gradient is scaled down to it."""
    accumulate: int = 1
    """Minibatches per step, one after the other, where memory is short."""
    restart: int = 0
    """Step at which parameters, optimiser and learning rate begin anew, after the inner loops have
    met the student of the step before; 0 for never."""

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        begun, end = (0, self.restart) if step < self.restart else (self.restart, self.steps)
        return self.learning_rate * _fallen(step, begun, end)


def _fallen(step: int, first: int, end: int) -> float:
    """A cosine from 1 at the first step to a tenth at the end."""
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - first) / (end - first)))


@dataclass(frozen=True)
class Renewal:
    """Makes training on-policy: the student samples the concept's latents anew as it changes."""

    every: int
    """Steps between two samplings; the first steps use the teacher's latents."""
    sample: Callable[[int], Trajectories]
    """Step -> trajectories of the same prompts at the same times."""


@dataclass(frozen=True)
class Step:
    """The result of one training step."""

    index: int
    loss: float
    choices: tuple[ErasedConcept, ...] = ()
    """The target of each concept at present, if an inner loop chooses targets."""


def train(
    denoiser: Denoiser,
    parameters: Sequence[nn.Parameter],
    trajectories: Mapping[str, Trajectories],
    objective: Objective,
    *,
    pace: Pace,
    inner: Sequence[InnerLoop] = (),
    renewal: Renewal | None = None,
    seed: int = 0,
    accelerator: Any = None,
    checkpoints: Checkpoints | None = None,
) -> Iterator[Step]:
    """Adam on `parameters`, one minibatch per view and step; yields after every step.

    Logging and validation belong to the caller, who may leave the loop at any time. An inner loop
    may end the run early (`InnerLoop`); over its last part the learning rate falls to a tenth.

    A run that is resumed from its checkpoint ends with the weights of one that was never stopped,
    bit for bit: chance depends on the seed and the step alone.

    The views pass through the inner loops in their order. Each process of an accelerator takes its
    share of every draw, and all take the same step.
    """
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    share = slice(rank, None, world)
    weights = next(denoiser.unet.parameters())
    half = weights.dtype is torch.float16 or denoiser.precision is torch.float16
    run = _Run(
        parameters,
        torch.optim.Adam(parameters, pace.learning_rate),
        torch.amp.GradScaler(weights.device.type, enabled=half),
        inner,
        dict(trajectories),
    )

    def mean(gradient: Tensor) -> Tensor:
        reduced: Tensor = accelerator.reduce(gradient, "mean") if world > 1 else gradient
        return reduced

    first = [p.detach().clone() for p in parameters] if pace.restart else []
    found = checkpoints.latest() if checkpoints else None
    if found:
        run.restore(found[1])
    for index in range(found[0] if found else 0, pace.steps):
        if index >= ending(inner, pace.steps)[1]:
            return
        if renewal and index and index % renewal.every == 0:
            run.renew(renewal.sample(index))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        run.optimiser.zero_grad()
        total = 0.0
        for minibatch in range(pace.accumulate):
            views: Views = {
                name: runs.draw(denoiser, pace.batch * world, generator, share)
                for name, runs in run.trajectories.items()
            }
            for loop in inner:
                views = loop(index, views)
            if first and index == pace.restart and not minibatch:
                run.begin_anew(first)
            loss = objective(views) / pace.accumulate
            total += _finite(loss, index)
            run.scaler.scale(loss).backward()
        _average(parameters, mean)
        begun, end = ending(inner, pace.steps)
        fall = _fallen(index, begun, end) if index >= begun else 1.0
        run.descend(fall * pace.rate(index), pace.clip)
        for loop in inner:
            loop.learn(views, objective, mean)
        done = index + 1
        last = done == ending(inner, pace.steps)[1]
        if checkpoints and rank == 0 and (done % checkpoints.every == 0 or last):
            checkpoints.save(done, run.state())
        yield Step(index, total, tuple(choice for loop in inner for choice in loop.choices()))


def ending(inner: Sequence[InnerLoop], steps: int) -> tuple[int, int]:
    """First step of the last part of the run, and its end; both are `steps` by default."""
    endings = (getattr(loop, "ending", None) for loop in inner)
    begun, end = min((each for each in endings if each), key=max, default=(steps, steps))
    return begun, min(end, steps)


@dataclass
class _Run:
    """Everything that changes in the course of a run."""

    parameters: Sequence[nn.Parameter]
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    inner: Sequence[InnerLoop]
    trajectories: dict[str, Trajectories]
    renewed: bool = False

    def renew(self, concept: Trajectories) -> None:
        """Train on these trajectories of the concept from now on."""
        self.trajectories["concept"], self.renewed = concept, True

    def begin_anew(self, first: Sequence[Tensor]) -> None:
        """Set the parameters to their first values, and forget the moments of their gradients."""
        for p, value in zip(self.parameters, first, strict=True):
            p.data.copy_(value)
        self.optimiser.state.clear()

    def descend(self, rate: float, clip: float) -> None:
        """One step of the optimiser; none if half precision overflowed."""
        self.optimiser.param_groups[0]["lr"] = rate
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.parameters, clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run cannot compute again."""
        state = {f"scaler.{k}": torch.tensor(v) for k, v in self.scaler.state_dict().items()}
        for i, p in enumerate(self.parameters):
            state[f"parameter.{i}"] = p.detach()
            moments = {f"{name}.{i}": value for name, value in self.optimiser.state[p].items()}
            state |= {name: value for name, value in moments.items() if isinstance(value, Tensor)}
        for i, loop in enumerate(self.inner):
            state |= {f"inner.{i}.{name}": value for name, value in loop.state().items()}
        return state | ({"latents": self.trajectories["concept"].z} if self.renewed else {})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        scaler = _under("scaler.", state)
        if scaler:
            self.scaler.load_state_dict({name: value.item() for name, value in scaler.items()})
        for i, p in enumerate(self.parameters):
            p.data.copy_(state[f"parameter.{i}"])
            # there are no moments as long as every step so far overflowed
            self.optimiser.state[p] = {
                name: state[f"{name}.{i}"].to("cpu" if name == "step" else p.device)
                for name in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{i}" in state
            }
        for i, loop in enumerate(self.inner):
            loop.restore(_under(f"inner.{i}.", state))
        if "latents" in state:
            self.renew(replace(self.trajectories["concept"].scoreless(), z=state["latents"]))


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)}


def _finite(loss: Tensor, index: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise ErasureError(
            f"The loss is {value} at step {index}; use a lower learning rate, or a "
            "pipeline in float32 or bfloat16."
        )
    return value


def _average(parameters: Sequence[nn.Parameter], mean: Callable[[Tensor], Tensor]) -> None:
    """Replace all gradients by their means over the processes, sent as one vector."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    averaged = mean(torch.cat([g.flatten() for g in gradients]))
    for g, part in zip(gradients, averaged.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))
