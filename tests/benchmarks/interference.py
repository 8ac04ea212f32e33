"""The interference from which on another eraser spoils an erasure; `load_erasure` warns of it.

python tests/benchmarks/interference.py --out build/interference.jsonl

An eraser at strength 1, and beside it another one at several strengths, made without being told of
the former: how much of the concept comes back, and what the text states said before any picture.
"""

import argparse
from itertools import pairwise, permutations, product
from pathlib import Path
from statistics import mean
from typing import Any

from erasure import Pictures, asked, concept_of, hits
from json_lines import append_lines, read_lines

from diffusers_erase.making.api import erase
from diffusers_erase.playground import load_pipeline


CONCEPTS = ("truck", "bus", "plane", "pine", "van gyre")
RECIPES, STRENGTHS = ("uce", "closed-form"), (1.0, 2.0, 4.0)
EDGES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, float("inf"))
PICTURES = 24


def table(lines: list[dict[str, Any]]) -> str:
    rows = [
        "| recipe | interference | pairs | left alone | beside the other | most that came back |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for recipe, (low, high) in product(RECIPES, pairwise(EDGES)):
        own = [x for x in lines if x["recipe"] == recipe and low <= x["interference"] < high]
        if own:
            alone, left = ([100 * x[k] / x["n"] for x in own] for k in ("alone", "beside"))
            worse = max(b - a for a, b in zip(alone, left, strict=True))
            rows.append(
                f"| {recipe} | {low:g} to {high:g} | {len(own)} | {mean(alone):.1f} % | "
                f"{mean(left):.1f} % | {worse:.0f} % |"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--out", type=Path, default=Path("build/interference.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {(line["recipe"], line["concept"], line["other"], line["strength"]) for line in lines}
    pictures = Pictures()
    for recipe in () if options.table else RECIPES:
        erasers = {
            name: erase(load_pipeline(), concept_of(name), recipe=recipe, check=False)
            for name in options.concepts
        }
        for name, other in permutations(options.concepts, 2):
            several = asked(name, name, PICTURES)
            pipe = load_pipeline()
            pipe.load_erasure(erasers[name], name=name)
            alone = hits(several, pictures.seen(pipe, several))
            pipe.load_erasure(erasers[other], name=other, strength=0.0)
            for strength in STRENGTHS:
                if (recipe, name, other, strength) in done:
                    continue
                pipe.set_erasure_strength(other, strength)
                line = {"recipe": recipe, "concept": name, "other": other, "strength": strength}
                line["target"] = erasers[name].config.concepts[0].target
                line["interference"] = pipe.list_erasures()[name].interference[other]
                beside = hits(several, pictures.seen(pipe, several))
                line |= {"alone": alone.hits, "beside": beside.hits, "n": alone.n}
                lines.append(line)
                append_lines(options.out, line)
                print(line, flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
