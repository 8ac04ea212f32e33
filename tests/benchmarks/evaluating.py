"""Pictures per second of an evaluation, against plain calls of the pipeline on the same prompts.

python tests/benchmarks/evaluating.py

The playground's pipeline and judge, one process; verdicts and the first pictures are stored, as a
report needs them. Both take turns, after one of each.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.playground import COLOURS, OBJECTS, load_judge, load_pipeline


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    names = [OBJECTS[i % len(OBJECTS)] for i in range(asked.pictures)]
    prompts = [f"a photo of a {COLOURS[i % len(COLOURS)]} {n}" for i, n in enumerate(names)]
    sampling = Sampling(steps=asked.steps, batch=asked.batch)
    sampler = PipelineSampler(pipe, load_judge(), sampling)
    rounds = iter(range(10_000))

    def evaluated() -> None:
        first = next(rounds) * asked.pictures  # seeds that no verdict is stored of
        pairs = zip(prompts, names, strict=True)
        cases = [PromptCase("words", p, (n,), first + i) for i, (p, n) in enumerate(pairs)]
        with tempfile.TemporaryDirectory() as folder:
            Runner(sampler, Path(folder), progress=False)(cases, "base")

    def plain() -> None:
        for start in range(0, asked.pictures, asked.batch):
            rows = prompts[start : start + asked.batch]
            with torch.autocast("cpu", sampling.autocast, enabled=sampling.autocast is not None):
                pipe(rows, guidance_scale=sampling.guidance, num_inference_steps=asked.steps)

    evaluated(), plain()
    pairs = [(seconds(evaluated), seconds(plain)) for _ in range(asked.rounds)]
    own, other = (median(each) for each in zip(*pairs, strict=True))
    ratio = median(a / b for a, b in pairs)
    print(f"evaluation {asked.pictures / own:.2f} pictures/s, plain calls "
          f"{asked.pictures / other:.2f} pictures/s: {ratio:.3f} times as long")  # fmt: skip


if __name__ == "__main__":
    main()
