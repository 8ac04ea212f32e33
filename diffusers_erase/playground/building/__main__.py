"""`python -m diffusers_erase.playground.building`: the whole playground from nothing.

World -> pictures -> autoencoder -> latents -> text encoder and denoiser -> judge -> the weights
the package ships. Every stage leaves its result in the work folder and is skipped the next time;
an interrupted one goes on where it was.
"""

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from diffusers_erase.playground import model
from diffusers_erase.playground.building.corpus import make_corpus
from diffusers_erase.playground.building.fitting import Plan, fit
from diffusers_erase.playground.building.stages import (
    export,
    make_judge_examples,
    make_latents,
    make_tokens,
    start_from,
)
from diffusers_erase.playground.building.tasks import AutoencoderTask, DenoiserTask, JudgeTask


logger = logging.getLogger(__name__)

PICTURES = 74_048
AUTOENCODER = Plan("vae", steps=3400, batch=64, learning_rate=2e-3, weight_decay=1e-4, ema=0.995)
DENOISER = Plan("denoiser", steps=12_000, batch=64, learning_rate=1e-3, ema=0.998, half=True)
JUDGE = Plan("judge", steps=6000, batch=128, learning_rate=2e-3, weight_decay=1e-2, ema=0.995)


def main() -> None:
    """Run every stage that is not done yet."""
    parser = argparse.ArgumentParser(
        "python -m diffusers_erase.playground.building", description=__doc__
    )
    work, weights = Path("build/playground"), model.WEIGHTS
    parser.add_argument("--work", type=Path, default=work, help="intermediate results")
    parser.add_argument("--weights", type=Path, default=weights, help="where the result goes")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--start", type=Path, help="weights to go on from, for example the shipped")
    parser.add_argument("--steps", type=int, default=DENOISER.steps, help="of the denoiser")
    parser.add_argument("--learning-rate", type=float, default=DENOISER.learning_rate)
    parser.add_argument("--vae-steps", type=int, default=AUTOENCODER.steps)
    parser.add_argument("--judge-steps", type=int, default=JUDGE.steps)
    parser.add_argument("--batch-scale", type=int, default=1, help="more per step, for a GPU")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, processes = arguments.work, arguments.processes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def plan(default: Plan, steps: int) -> Plan:
        return replace(default, steps=steps, batch=arguments.batch_scale * default.batch)

    autoencoder = plan(AUTOENCODER, arguments.vae_steps)
    denoiser = plan(DENOISER, arguments.steps)
    denoiser = replace(denoiser, learning_rate=arguments.learning_rate)
    judge = plan(JUDGE, arguments.judge_steps)
    make_corpus(folder / "corpus", PICTURES, processes=processes)
    make_tokens(folder)
    if arguments.start:
        start_from(arguments.start, folder)
    fit(AutoencoderTask, folder, autoencoder, processes=processes)
    make_latents(folder, device)
    fit(DenoiserTask, folder, denoiser, processes=processes)
    make_judge_examples(folder, device)
    fit(JudgeTask, folder, judge, processes=processes)
    export(folder, arguments.weights, device)
    logger.info("The playground is in %s", arguments.weights)


if __name__ == "__main__":
    main()
