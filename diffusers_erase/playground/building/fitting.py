"""One training loop for all networks: processes, one flat vector, resumable bit for bit."""

import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn


logger = logging.getLogger(__name__)


class Task(Protocol):
    """A network to train and its loss on a random batch."""

    @property
    def network(self) -> nn.Module:
        """The network to train."""
        ...

    def loss(self, generator: torch.Generator, *, batch: int, progress: float) -> Tensor:
        """Scalar; chance comes from `generator` (on the CPU), `progress` runs from 0 to 1."""
        ...


@dataclass(frozen=True)
class Plan:
    """Length, learning rate and further settings of the training of a network."""

    name: str
    """File name: `<name>.safetensors` when done, `<name>.checkpoint.safetensors` on the way."""
    steps: int
    batch: int
    """Examples a step, all processes together."""
    learning_rate: float
    weight_decay: float = 1e-3
    warm_up: int = 150
    flat: float = 0.15
    """Share of the run before the cosine sets in."""
    ema: float = 0.999
    half: bool = False
    """The network is in bfloat16, beside float32 weights; else autocast."""
    save_every: int = 200

    def rate(self, step: int) -> float:
        """Warm-up, plateau, cosine down to 1 % of the peak."""
        done = step / self.steps
        fall = max(0.0, (done - self.flat) / (1 - self.flat))
        rise = min(1.0, (step + 1) / self.warm_up)
        return self.learning_rate * rise * max(0.01, 0.5 * (1 + math.cos(math.pi * fall)))


MakeTask = Callable[[Path, torch.device], Task]


def fit(make_task: MakeTask, folder: Path, plan: Plan, *, processes: int) -> None:
    """Train until `folder/<name>.safetensors` exists; goes on where it was stopped.

    The file holds the averaged weights. On a CPU one single-threaded process per core, their
    gradients averaged, is about twice as fast as one process with as many threads; with a GPU
    there is one process.
    """
    if (folder / f"{plan.name}.safetensors").is_file():
        logger.info("%s: done already", plan.name)
        return
    if torch.cuda.is_available():
        _worker(0, 1, 0, make_task, folder, plan)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn(_worker, (processes, port, make_task, folder, plan), nprocs=processes)


def _worker(
    rank: int,
    world: int,
    port: int,
    make_task: MakeTask,
    folder: Path,
    plan: Plan,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    run = TrainingState(make_task(folder, device), folder, plan)
    started, began = run.step, time.monotonic()
    while run.step < plan.steps:
        loss = run.advance(rank, world, device)
        if rank == 0 and (run.step % 100 == 0 or run.step == plan.steps):
            pace = (time.monotonic() - began) / (run.step - started)
            done = f"{plan.name} {run.step}/{plan.steps}"
            logger.info("%s loss %.4f, %.3f s a step", done, loss.item(), pace)
        if rank == 0 and (run.step % plan.save_every == 0 or run.step == plan.steps):
            run.save()
    if rank == 0:
        run.finish()
    if world > 1:
        dist.destroy_process_group()


class TrainingState:
    """The state of a training run: all weights as one vector, its average, and AdamW's moments."""

    def __init__(self, task: Task, folder: Path, plan: Plan) -> None:
        self.task, self.plan, self.step = task, plan, 0
        self.path = folder / f"{plan.name}.checkpoint.safetensors"
        self.target = folder / f"{plan.name}.safetensors"
        self.parameters = [p for p in task.network.parameters() if p.requires_grad]
        self.weights = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.parameters]))
        self.average = self.weights.detach().clone()
        self.recent = self.weights.new_zeros(())
        self.optimiser = torch.optim.AdamW(
            [self.weights],
            lr=plan.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=plan.weight_decay,
            fused=True,
        )
        if self.path.is_file():
            self.load()
        self.live = self.weights.data.to(torch.bfloat16) if plan.half else self.weights.data
        self.gradient = torch.zeros_like(self.live)
        self._bind(self.live)

    def _bind(self, vector: Tensor) -> None:
        """Make every parameter, and its gradient, a view into the flat vectors."""
        gradient = self.gradient.to(vector.dtype)
        offset = 0
        for p in self.parameters:
            shape, end = p.shape, offset + p.numel()
            p.grad = None
            p.data = vector[offset:end].view(shape)
            p.grad = gradient[offset:end].view(shape)
            offset = end

    def advance(self, rank: int, world: int, device: torch.device) -> Tensor:
        """One step on the mean gradient of all processes, clipped to norm 1.

        Returns the smoothed loss, a scalar left on the device. Chance depends on the step and the
        process alone, so a resumed run repeats what it would have done.
        """
        generator = torch.Generator().manual_seed(self.step * world + rank)
        torch.manual_seed(self.step * world + rank)
        self.gradient.zero_()
        share, progress = self.plan.batch // world, self.step / self.plan.steps
        with torch.autocast(device.type, torch.bfloat16, enabled=not self.plan.half):
            loss = self.task.loss(generator, batch=share, progress=progress)
        loss.backward()
        if world > 1:
            dist.all_reduce(self.gradient)
        gradient = self.gradient.float() / world
        gradient.mul_((1 / (gradient.norm() + 1e-6)).clamp(max=1.0))
        self.weights.grad = gradient
        self.optimiser.param_groups[0]["lr"] = self.plan.rate(self.step)
        self.optimiser.step()
        self.live.copy_(self.weights.data)
        self.step += 1
        self.average.lerp_(self.weights.data, 1 - min(self.plan.ema, self.step / (self.step + 20)))
        self.recent = self.recent.lerp(loss.detach().float(), 0.02 if self.step > 1 else 1.0)
        return self.recent

    def load(self) -> None:
        """Take up the checkpoint."""
        with safe_open(self.path, "pt") as file:
            self.step = json.loads(file.metadata()["step"])
        stored = load_file(self.path)
        self.weights.data.copy_(stored["weights"])
        self.average.copy_(stored["average"])
        device = self.weights.device  # a fused optimiser wants its step there too
        moments = {name: stored[name].to(device) for name in ("exp_avg", "exp_avg_sq")}
        step = torch.tensor(float(self.step), device=device)
        self.optimiser.state[self.weights] = {"step": step, **moments}

    def save(self) -> None:
        """Write the checkpoint beside the old one, then put it in its place."""
        draft = self.path.with_suffix(".draft")
        moments = {k: v for k, v in self.optimiser.state[self.weights].items() if k != "step"}
        state = {"weights": self.weights.data, "average": self.average, **moments}
        save_file(state, draft, {"step": json.dumps(self.step)})
        draft.replace(self.path)

    def finish(self) -> None:
        """Write the averaged weights under the network's own names."""
        self._bind(self.average)
        state = self.task.network.state_dict()
        tensors = {k: v.detach().clone().contiguous() for k, v in state.items()}
        draft = self.target.with_suffix(".draft")
        save_file(tensors, draft)
        draft.replace(self.target)
