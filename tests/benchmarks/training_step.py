"""Where a training step's time goes: encoder calls, UNet evaluations, and the loop's overhead.

python tests/benchmarks/training_step.py

`surgical-age` for truck on the playground, one thread. An evaluation is one forward of one latent,
a backward counts two. Processor seconds of a step are held against the same passes of the same UNet
with the same trained matrices and nothing else; both take turns.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.lora import attached
from diffusers_erase.models.model import Model
from diffusers_erase.playground import OBJECTS, load_pipeline
from diffusers_erase.training.recipes import SURGICAL_AGE
from diffusers_erase.training.trainer import Step


def passes(pipe: Any, autocast: torch.dtype | None, *, last: bool) -> Callable[[], None]:
    """Forward and backward of the two minibatches of a step, on the matrices in training."""
    model, batch = Model.of(pipe), SURGICAL_AGE.batch
    unet, states = model.pipeline.unet, model.encode(["a photo of a truck"] * batch)
    size = unet.config.sample_size
    z = torch.randn(batch, unet.config.in_channels, size, size)
    z = z.to(memory_format=torch.channels_last) if last else z
    t = torch.linspace(0, 999, batch).long()

    def run() -> None:
        for _ in range(2):
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                found = unet(z, t, encoder_hidden_states=states).sample
            found.float().square().mean().backward()

    return run


@contextmanager
def in_training() -> Iterator[Any]:
    """The playground with the matrices of `surgical-age`, which alone are trained."""
    pipe = load_pipeline()
    null = Model.of(pipe).encode([""])
    with attached(pipe.unet, parts=SURGICAL_AGE.parts, rank=4, seed=0, protect=null):
        yield pipe


def seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concept", default="truck")
    name = parser.parse_args().concept
    torch.set_num_threads(1)
    pipe, calls = load_pipeline(), [0]
    pipe.text_encoder.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    bare = passes(pipe, None, last=False)
    ends, alone, marks = list[float](), list[float](), list[tuple[int, int]]()
    steps = list[float]()

    def ended(_: Step) -> None:
        steps.append(time.process_time() - ends[-1] if ends else 0.0)
        marks.append((calls[0], cost()))
        alone.append(seconds(bare))
        ends.append(time.process_time())

    with counted(pipe.unet) as cost:
        words = {"vocabulary": OBJECTS, "recipe": SURGICAL_AGE, "check": False}
        erase(pipe, name, **words, progress=False, callback_on_step_end=ended)
        whole = cost() - len(marks) * 2 * 3 * SURGICAL_AGE.batch  # without those held against it
    own = 2 * 3 * SURGICAL_AGE.batch
    each = marks[1][1] - marks[0][1] - own
    print(f"encoder calls in the loop: {marks[-1][0] - marks[0][0]}")
    print(f"evaluations: {whole}, of which {whole - len(marks) * each} before the loop, "
          f"{each} a step (two minibatches, forward and backward: {own})")  # fmt: skip
    ratio = median(a / b for a, b in zip(steps[1:], alone[1:], strict=True))
    print(f"a step against its passes alone: {ratio:.3f}")
    for title, last, autocast in (
        ("channels last", True, None),
        ("bfloat16 autocast", False, torch.bfloat16),
    ):
        with in_training() as other, in_training() as same:
            if last:
                other.unet.to(memory_format=torch.channels_last)
            changed, plain = passes(other, autocast, last=last), passes(same, None, last=False)
            changed(), plain()
            ratio = median(seconds(changed) / seconds(plain) for _ in range(5))
        print(f"passes with {title} against those without: {ratio:.2f}")


if __name__ == "__main__":
    main()
