"""Measure an eraser, attack it, read the report, and put the numbers on its card."""

import argparse
from pathlib import Path

from diffusers_erase import erase
from diffusers_erase.attacks.inversion import Inversion
from diffusers_erase.attacks.sampling import Noise
from diffusers_erase.evaluation.evidence import Evidence, evaluate
from diffusers_erase.evaluation.report import sheets_of, write_report
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import Suite
from diffusers_erase.playground import load_judge, load_pipeline
from diffusers_erase.playground.protocols import protocol


def main(folder: Path, steps: int, pictures: int) -> None:
    pipe, judge = load_pipeline(), load_judge()
    eraser = erase(pipe, "car")
    pipe.load_erasure(eraser)

    # For another model: `Suite.read("mine.yaml")`, and any detector of `evaluation.detectors`.
    suite = Suite.of(protocol("card", "car", pictures=pictures))
    sampler = PipelineSampler(pipe, judge, Sampling(steps=steps, batch=16))
    runner = Runner(sampler, folder / "measured.run")  # a run that is stopped goes on from there
    attacks = [Noise(scales=(1.0,)), Inversion(steps=20 * steps)]
    evidence = evaluate(runner, suite, attacks=attacks, attempts=4)

    for row in evidence.summary.rows:
        print(f"{row.name:<12} base {row.base.value:4.0%}  erased {row.erased.value:4.0%}")
    for side, result in evidence.attacks:
        if side == "erased":
            erased, base = result.post, evidence.attack_result(result.attack, "base").post
            print(f"{result.attack:<12} base {base.value:4.0%}  erased {erased.value:4.0%}")
    print(f"verdict: {evidence.summary.verdict}")

    report = write_report(evidence, folder / "measured", sheets_of(runner, suite))
    again = Evidence.read(report / "results.jsonl")
    print(
        f"{report}/index.html; counted anew from its raw lines: {again.card() == evidence.card()}"
    )

    # `eraser.push_to_hub("user/erase-car", results=evidence.card())` shares it with everybody.
    saved = eraser.save_pretrained(folder / "erase-car", overwrite=True, results=evidence.card())
    card = (saved / "README.md").read_text()
    print(card[card.index("## Measured") :].split("\n## ")[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=24)
    arguments = parser.parse_args()
    main(arguments.out, arguments.steps, arguments.pictures)
