"""The loop yields, so the caller decides: watch a concept go, and stop when it is gone."""

import argparse

from diffusers_erase import Concept, train
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.playground import load_judge, load_pipeline
from diffusers_erase.training.objectives import Steer
from diffusers_erase.training.trainer import Pace


def main(steps: int, every: int) -> None:
    pipe, judge, concept = load_pipeline(), load_judge(), Concept("castle")
    prompts = [prompt.text for prompt in concept.example_prompts()]
    answers = [prompt.about("house") for prompt in concept.example_prompts()]
    with attached(pipe.unet, parts=("to_k", "to_v"), rank=4, seed=0) as lora:
        denoiser = Denoiser(pipe.unet, NoiseSchedule.of(pipe.scheduler), lora.adapter_disabled)
        kept = sample_trajectories(
            denoiser, pipe.scheduler, encode(pipe, prompts), encode(pipe, [""]), steps=10
        ).remember(denoiser, "target", encode(pipe, answers))
        loop = train(
            denoiser,
            lora.parameters,
            {"concept": kept},
            Steer(),
            pace=Pace(steps, batch=16, learning_rate=1e-3),
        )
        for step in loop:
            if step.index % every == 0:
                seen = judge(draw(pipe, ["a photo of a red castle"] * 8, steps=10))
                left = sum("castle" in verdict.objects for verdict in seen)
                print(f"step {step.index:>3}  loss {step.loss:.4f}  castles {left} of 8")
                if left == 0:
                    print("Gone; stopping early.")
                    break
        print(f"{len(lora.factors())} layers trained, {denoiser.evaluations} UNet evaluations.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=20)
    arguments = parser.parse_args()
    main(arguments.steps, arguments.every)
