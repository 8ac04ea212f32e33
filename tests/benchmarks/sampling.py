"""Cost of sampling, loading and erasing: seconds on this machine, and UNet evaluations.

python tests/benchmarks/sampling.py
"""

import time
from collections.abc import Callable

import torch

from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.playground import load_judge, load_pipeline
from diffusers_erase.training.recipes import REPLACE


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    load_pipeline()
    print(f"load_pipeline, second time: {seconds(load_pipeline):.2f} s")
    print(f"load_judge: {seconds(load_judge):.2f} s")
    pipe = load_pipeline()
    prompts = ["a photo of a red car"] * 16
    draw(pipe, prompts, steps=2)
    print(f"16 pictures, 25 steps, guidance 5: {seconds(lambda: draw(pipe, prompts)):.1f} s")
    eraser = erase(pipe, "car", target="truck", steps=1, progress=False, check=False)
    for change in (lambda: pipe.load_erasure(eraser), pipe.unload_erasures):
        print(f"load, then unload an eraser: {1000 * seconds(change):.1f} ms")
    pipe.load_erasure(eraser)
    print(f"16 pictures with an eraser: {seconds(lambda: draw(pipe, prompts)):.1f} s")
    pipe.unload_erasures()
    denoiser, concept = (
        Denoiser(Model.of(pipe).denoiser, NoiseSchedule.of(pipe.scheduler)),
        Concept("car"),
    )
    states, null = encode(pipe, [p.text for p in concept.example_prompts()]), encode(pipe, [""])
    kept = sample_trajectories(denoiser, pipe.scheduler, states, null, steps=REPLACE.sampling_steps)
    sampled = denoiser.evaluations
    kept.remember(denoiser, "target", states)
    remembered = denoiser.evaluations - sampled
    trained = REPLACE.steps * REPLACE.batch
    print(
        f"erase, UNet evaluations: {sampled} sampling + {remembered} targets + {trained} forward "
        f"and {trained} backward in training, for {len(kept)} kept latents"
    )
    whole = seconds(lambda: erase(pipe, "car", target="truck", progress=False, check=False))
    print(f"erase, wall time: {whole:.0f} s")


if __name__ == "__main__":
    main()
