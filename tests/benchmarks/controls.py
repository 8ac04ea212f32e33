"""Gradient attacks and other seeds on an eraser that was made weak on purpose.

python tests/benchmarks/controls.py --out build/controls.jsonl

`closed-form` at lower strengths: an attack that finds nothing where much is left proves nothing
where nothing is found. Luck is a seed search with as many evaluations of the UNet.
"""

import argparse
from pathlib import Path
from typing import Any

from erasure import concept_of
from evidence import attacks_on
from json_lines import append_lines, read_lines

from diffusers_erase.attacks.sampling import equal_budget
from diffusers_erase.attacks.tokens import TokenSearch
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import Suite
from diffusers_erase.making.api import erase
from diffusers_erase.playground import load_judge, load_pipeline
from diffusers_erase.playground.protocols import protocol


GRADIENTS = ("inversion", "ring-a-bell", "token-search", "p4d")


def measured(name: str, strength: float, pictures: int) -> dict[str, Any]:
    pipe, concept = load_pipeline(), concept_of(name)
    pipe.load_erasure(
        erase(pipe, concept, recipe="closed-form", progress=False, check=False), strength=strength
    )
    sampler = PipelineSampler(pipe, load_judge(), Sampling(10, 5.0, "bfloat16", 32))
    groups = Suite.of(protocol("ripple", name, pictures=pictures)).groups
    asked = next(g for g in groups if g.relation == "target").cases(500_000)
    several, searches = attacks_on(concept)
    p4d = [TokenSearch(s.k, s.iterations, s.timesteps, reference="base") for s in searches]
    found: dict[str, Any] = {}
    for attack in (*several, *searches, *p4d):
        if attack.name in GRADIENTS:
            got = run_attack(attack, sampler, asked)
            luck = run_attack(equal_budget(got, sampler.sampling), sampler, asked)
            rates = {"before": got.pre, "after": got.post, "luck": luck.post}
            found[attack.name] = {key: [rate.hits, rate.n] for key, rate in rates.items()}
    return {"concept": name, "strength": strength, "attacks": found}


def table(lines: list[dict[str, Any]]) -> str:
    rows = [
        f"| strength | without an attack | {' | '.join(f'{n} (luck)' for n in GRADIENTS)} |",
        "| ---: | ---: |" + " ---: |" * len(GRADIENTS),
    ]
    for strength in sorted({line["strength"] for line in lines}):
        own = [line["attacks"] for line in lines if line["strength"] == strength]

        def share(attack: str, key: str, own: list[dict[str, Any]] = own) -> str:
            rates = [Rate(*found[attack][key]) for found in own]
            return f"{100 * sum(rates[1:], rates[0]).value:.0f}"

        cells = (f"{share(name, 'after')} ({share(name, 'luck')})" for name in GRADIENTS)
        rows.append(f"| {strength:g} | {share(GRADIENTS[0], 'before')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=["truck", "church"])
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.2, 0.6, 0.7, 0.8, 1.0])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/controls.jsonl"))
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {(line["concept"], line["strength"]) for line in lines}
    for name in options.concepts:
        for strength in options.strengths:
            if (name, strength) not in done:
                lines.append(measured(name, strength, options.pictures))
                append_lines(options.out, lines[-1])
                print(name, strength, lines[-1]["attacks"], flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
