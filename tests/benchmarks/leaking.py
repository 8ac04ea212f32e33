"""Readers tell a concept from its target after erasures, and after a perfect one.

python tests/benchmarks/leaking.py --concepts truck oval church
"""

import argparse

from erasure import concept_of, neighbours, vocabulary
from leakage import leakage
from peers import uce

from diffusers_erase.making.api import erase
from diffusers_erase.playground import load_pipeline


RECIPES = ("base", "surgical-age", "closed-form", "leace", "rece", "speed", "uce")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=["truck", "oval", "church"])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    options = parser.parse_args()
    print("| concept | from | recipe | linear | MLP | bits of 1 | perfect erasure keeps at most |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for name in options.concepts:
        concept, pipe = concept_of(name), load_pipeline()
        target = neighbours(concept)[0]
        words = [word for word in vocabulary(concept) if word != name]
        for recipe in options.recipes:
            eraser = None
            if recipe == "uce":
                eraser = uce(pipe, concept, target, words)
            elif recipe != "base":
                how = {"target": target, "vocabulary": words, "progress": False}
                eraser = erase(pipe, concept, recipe=recipe, **how, check=False)
            found = leakage(pipe, concept, target, eraser=eraser)
            print(
                f"| {name} | {target} | {recipe} | {found.linear:.2f} | {found.mlp:.2f} "
                f"| {found.bits:.2f} | {found.bound:.1f} of {found.bound + 1:.1f} bits |",
                flush=True,
            )


if __name__ == "__main__":
    main()
