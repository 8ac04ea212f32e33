"""Erasers one after another, each made on the bare base: what is gone and what is left after each.

python tests/benchmarks/continual.py --out docs/measured/continual.json

Every fourth object of the playground, erased by each recipe with all others in its vocabulary;
eight pictures of each of the 42 after every step (DUGE's protocol).
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasure import concept_of

from diffusers_erase.concepts import Vocabulary
from diffusers_erase.evaluation.continual import continual
from diffusers_erase.evaluation.graph import ConceptSet
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase
from diffusers_erase.playground import OBJECTS, load_judge, load_pipeline
from diffusers_erase.playground.protocols import graph_protocol


def share(rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{100 * rate['value']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["closed-form", "surgical-age", "uce"])
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("build/continual.run"))
    parser.add_argument("--out", type=Path, default=Path("build/continual.json"))
    options = parser.parse_args()
    pipe, names = load_pipeline(), OBJECTS[:: options.every]
    concepts = ConceptSet.of(graph_protocol(pictures=options.pictures))
    sampler = PipelineSampler(pipe, load_judge(), Sampling(10, 5.0, "bfloat16", 32))
    runner = Runner(sampler, options.work, progress=False, shown=0)
    found = {}
    for recipe in options.recipes:
        erasers = {
            name: erase(
                pipe,
                concept_of(name),
                recipe=recipe,
                vocabulary=Vocabulary(tuple(word for word in OBJECTS if word != name)),
                progress=False,
                check=False,
            )
            for name in names
        }
        found[recipe] = continual(runner, concepts, erasers).to_list()
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("| erased | " + " | ".join(f"`{recipe}`, gone | left" for recipe in found) + " |")
    print("| --- |" + " ---: | ---: |" * len(found))
    for lines in zip(*found.values(), strict=True):
        cells = " | ".join(f"{share(line['unlearned'])} | {share(line['kept'])}" for line in lines)
        print(f"| {lines[0]['erased']} | {cells} |")


if __name__ == "__main__":
    main()
