"""A training run for a process of its own."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from diffusers_erase.concepts import Concept, Prompt, Vocabulary
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import Trajectories, sample_trajectories
from diffusers_erase.playground.building import networks
from diffusers_erase.training.adaptive import Adaptive
from diffusers_erase.training.checkpoints import Checkpoints
from diffusers_erase.training.objectives import Keep, Steer, Sum
from diffusers_erase.training.targets import TargetContext
from diffusers_erase.training.trainer import Pace, Renewal, train
from tests import zoo


def main(
    out: Path,
    steps: int,
    batch: int,
    folder: Path | None,
    environment: Mapping[str, str],
    says: Connection,
) -> None:
    """Train, send the index of each step, and write the factors to `out`."""
    warnings.simplefilter("ignore")
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = networks.write_tokenizer(Path(scratch))
    pipe = networks.assemble(
        vae=networks.vae(),
        text_encoder=networks.text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=zoo.narrow_unet(),
    )
    accelerator = Accelerator(cpu=True) if "RANK" in os.environ else None
    form = os.environ.get("FORM", "minimax")
    with attached(pipe.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(pipe.unet, NoiseSchedule.of(pipe.scheduler), lora.adapter_disabled)
        prompts = (Prompt("a red {}", "car"), Prompt("{a} at night", "car"))

        def sample(step: int, *, student: bool = True) -> Trajectories:
            states, null = encode(pipe, [p.text for p in prompts]), encode(pipe, [""])
            options = {"steps": 3, "seed": step, "student": student}
            return sample_trajectories(denoiser, pipe.scheduler, states, null, **options)

        kept, every = sample(0, student=False), int(os.environ.get("REFRESH", "0"))
        context = TargetContext(
            denoiser,
            lambda texts: encode(pipe, texts),
            (Concept("car"),),
            prompts,
            torch.tensor([0, 0]),
            kept,
            resampled=every > 0,
        )
        words = Vocabulary(("truck", "oak", "cat"))
        adaptive = Adaptive(words, form=form, every=2, synonym=0)
        loop = train(
            denoiser,
            lora.parameters,
            {"concept": kept},
            Sum(((1.0, Steer()), (0.5, Keep("target", at="concept")))),
            pace=Pace(steps, batch, 3e-3),
            inner=(adaptive.begin(context, seed=0),),
            renewal=Renewal(every, sample) if every else None,
            accelerator=accelerator,
            checkpoints=Checkpoints(folder, {"batch": batch}, every=1) if folder else None,
        )
        for step in loop:
            says.send(step.index)
        tensors = {f"{k}.{h}": v for k, pair in lora.factors().items() for h, v in enumerate(pair)}
    save_file(tensors, out)
