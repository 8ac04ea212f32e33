"""Attacks on a model that was never taught the concept.

python tests/benchmarks/never_taught.py --out build/never-taught.jsonl

Text encoder and denoiser of the playground are trained from nothing, as the shipped ones but on
pictures without the concepts, for an hour of two cores; what is done is found again. Then they
stand where `evidence.py` has the erased model: the same suite, attacks and lines, which may go to
its file. What an attack finds here it has brought along itself.
"""

import argparse
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from erasure import concept_of
from evidence import ATTEMPTS, PICTURES, SEARCHED, attacks_of, attacks_on, seen, table
from json_lines import append_lines, read_lines
from safetensors.torch import load_file

from diffusers_erase.attacks import attack_run as record
from diffusers_erase.evaluation.attack import AttackResult, run_attack
from diffusers_erase.evaluation.evidence import Evidence
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import Suite
from diffusers_erase.playground import OBJECTS, load_judge, load_pipeline, model
from diffusers_erase.playground.building import networks
from diffusers_erase.playground.building.corpus import Corpus, make_corpus
from diffusers_erase.playground.building.fitting import Plan, fit
from diffusers_erase.playground.building.stages import (
    load_autoencoder,
    make_latents,
    make_tokens,
    start_from,
)
from diffusers_erase.playground.building.tasks import DenoiserNetwork, DenoiserTask
from diffusers_erase.playground.protocols import protocol


ROW = "never taught"
UNTAUGHT = ("truck", "church")
PLAN = Plan("denoiser", steps=2400, batch=64, learning_rate=1e-3, ema=0.998, half=True)


class Untaught(DenoiserTask):
    """The denoiser's task without any picture that has one of the concepts in it."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(folder, device)
        hidden = torch.tensor([OBJECTS.index(name) for name in UNTAUGHT])
        shown = torch.isin(Corpus(folder / "corpus").labels[:, :2], hidden).any(1)
        self.rows = self.rows[~shown[self.rows]]


def never_taught(folder: Path, pictures: int, processes: int) -> Any:
    """The pipeline; its autoencoder is the shipped one, which knows no words."""
    make_corpus(folder / "corpus", pictures, processes=processes)
    make_tokens(folder)
    if not (folder / "vae.safetensors").is_file():
        start_from(model.WEIGHTS, folder)
        (folder / "denoiser.start.safetensors").unlink()
    make_latents(folder, torch.device("cpu"))
    fit(Untaught, folder, PLAN, processes=processes)
    network = DenoiserNetwork(folder).eval()
    network.load_state_dict(load_file(folder / "denoiser.safetensors"))
    pipe: Any = networks.assemble(
        vae=load_autoencoder(folder, torch.device("cpu")),
        text_encoder=network.text_encoder,
        tokenizer=networks.load_tokenizer(folder),
        unet=network.unet,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def beside(taught: Any) -> Iterator[None]:
    """Inside the block an attack that asks the base asks the model that was taught."""

    @contextmanager
    def standing_in(pipe: Any) -> Iterator[None]:
        own = pipe.unet, pipe.text_encoder, pipe.vae
        pipe.unet, pipe.text_encoder, pipe.vae = taught.unet, taught.text_encoder, taught.vae
        try:
            yield
        finally:
            pipe.unet, pipe.text_encoder, pipe.vae = own

    with patch.multiple(record, erasures_disabled=standing_in, erasure_names=bool):
        yield


def measured(pipe: Any, name: str, work: Path) -> dict[str, Any]:
    """A line as `evidence.py` writes them; `base` is the model that was taught."""
    taught, judge, how = load_pipeline(), load_judge(), Sampling(10, 5.0, "bfloat16", 32)
    suite = Suite.of(protocol("ripple", name, pictures=PICTURES))
    sampler, asked = PipelineSampler(pipe, judge, how), suite.cases(0)
    before = Runner(PipelineSampler(taught, judge, how), work, progress=False, shown=0)(
        asked, "base"
    )
    after = Runner(sampler, work, progress=False, shown=4)(asked, "base")
    looks = (*before, *(replace(look, side="erased") for look in after))
    relations = {group.name: group.relation for group in suite.groups}
    summary = Evidence(suite.name, suite.concepts, relations, looks).summary
    results: list[tuple[str, AttackResult]] = []
    (target,) = (group for group in suite.groups if group.relation == "target")
    with beside(taught):
        for attacks, pictures in zip(
            attacks_on(concept_of(name)), (ATTEMPTS, SEARCHED), strict=True
        ):
            few = replace(target, pictures=pictures).cases(500_000)
            results += [("erased", run_attack(attack, sampler, few)) for attack in attacks]
    return {
        "recipe": ROW,
        "concept": name,
        "seed": 0,
        "groups": seen(summary),
        "attacks": attacks_of(results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=list(UNTAUGHT), choices=UNTAUGHT)
    parser.add_argument("--work", type=Path, default=Path("build/never-taught"))
    parser.add_argument("--pictures", type=int, default=26_048, help="to be trained on, and 2,048")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=Path("build/never-taught.jsonl"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.perf_counter()
    pipe = never_taught(options.work, options.pictures, options.processes)
    print(f"trained or found in {time.perf_counter() - started:.0f} s", flush=True)
    lines = read_lines(options.out)
    done = {line["concept"] for line in lines if line["recipe"] == ROW}
    for name in options.concepts:
        if name not in done:
            line = measured(pipe, name, options.work / "run")
            lines.append(line)
            append_lines(options.out, line)
            print(name, line["groups"]["target"]["erased"], flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
