"""Many erasers on one model: their plain sum, Gram fusion, and one solution for all concepts.

python tests/benchmarks/stacking.py --out build/stacking.jsonl

Every eraser is made alone first, in closed form, and knows nothing of the others: so it may answer
its concept as one that another eraser takes away.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from erasure import (
    CONCEPTS,
    STYLE_OF,
    Pictures,
    asked,
    concept_of,
    damage,
    hits,
    null_drift,
    share,
)
from json_lines import append_lines, read_lines

from diffusers_erase.concepts import prompts_naming
from diffusers_erase.editing.prior import gram, kept_moments
from diffusers_erase.editing.token_pairs import texts_of
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.stacking import KEEP, Rest, fused, summed
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.making.api import erase
from diffusers_erase.playground import OBJECTS, load_pipeline


ALL = (*OBJECTS, *STYLE_OF)
ERASED_PICTURES, KEPT_PICTURES = 16, 4

MIXED = [CONCEPTS[7 * k % len(CONCEPTS)] for k in range(len(CONCEPTS))]
"""Objects and styles in an order in which families do not come together."""


@cache
def alone(name: str) -> EraserAdapter:
    """The closed form with all other words in its vocabulary."""
    words = [word for word in ALL if word != name]
    return erase(
        load_pipeline(), concept_of(name), vocabulary=words, recipe="closed-form", check=False
    )


def by_sum(names: Sequence[str]) -> EraserAdapter:
    return summed([alone(name) for name in names])


def by_gram(
    names: Sequence[str], rest_as: Rest = "sum", keep_weight: float = KEEP
) -> EraserAdapter:
    texts = texts_of(load_pipeline())
    rest = [word for word in ALL if word not in names]
    objects, styles = (
        prompts_naming([word for word in rest if (word in STYLE_OF) == painted], kind)
        for painted, kind in ((False, "object"), (True, "style"))
    )
    return fused(
        [alone(name) for name in names],
        [gram(texts, [p.text for p in concept_of(name).example_prompts(16)]) for name in names],
        kept_moments(texts, [*objects, *styles], general=True),
        rest=rest_as,
        hold=row_space(texts.encode([""])),
        keep_weight=keep_weight,
    )


def by_solving(names: Sequence[str]) -> EraserAdapter:
    concepts = [concept_of(name) for name in names]
    return erase(load_pipeline(), concepts, vocabulary=ALL, recipe="closed-form", check=False)


WAYS: dict[str, Callable[[Sequence[str]], EraserAdapter]] = {
    "sum": by_sum,
    "Gram fusion": by_gram,
    "Gram fusion, the rest untouched": partial(by_gram, rest_as="nothing"),
    "solved together": by_solving,
    "Gram fusion, the rest untouched, κ = 1": partial(by_gram, rest_as="nothing", keep_weight=1.0),
}


def counted(way: str, names: Sequence[str], pictures: Pictures) -> dict[str, Any]:
    pipe, rest = load_pipeline(), [word for word in ALL if word not in names]
    for name in names:
        alone(name)
    started = time.perf_counter()
    eraser = WAYS[way](names)
    line: dict[str, Any] = {"way": way, "erasers": len(names), "rank": eraser.config.rank}
    line["seconds"] = time.perf_counter() - started
    groups = {
        "erased": [a for name in names for a in asked(name, name, ERASED_PICTURES)],
        "rest": [a for word in rest for a in asked(word, word, KEPT_PICTURES)],
    }
    base = {group: pictures.of_base(pipe, several) for group, several in groups.items()}
    pipe.load_erasure(eraser)
    after = {group: pictures.seen(pipe, several) for group, several in groups.items()}
    per = range(0, len(groups["erased"]), ERASED_PICTURES)
    line["left"] = {
        name: hits(
            groups["erased"][i : i + ERASED_PICTURES], after["erased"][i : i + ERASED_PICTURES]
        ).hits
        for name, i in zip(names, per, strict=True)
    }
    line["rest"] = {
        which: [rate.hits, rate.n]
        for which, rate in (
            ("base", hits(groups["rest"], base["rest"])),
            ("erased", hits(groups["rest"], after["rest"])),
        )
    }
    line["damage"] = [damage(pipe, word) for word in rest]
    line["null_drift"] = null_drift(pipe, names[0])
    return line


def table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| erasers | way | ESR (worst) | rest kept | damage to the rest | null drift | rank | s |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in sorted(lines, key=lambda line: line["erasers"]):
        gone = [100 * (1 - left / ERASED_PICTURES) for left in line["left"].values()]
        rows.append(
            f"| {line['erasers']} | {line['way']} | {sum(gone) / len(gone):.1f} % ({min(gone):.0f})"
            f" | {share([line['rest']]):.1f} % | {sum(line['damage']) / len(line['damage']):.3f} "
            f"| {line['null_drift']:.1e} | {line['rank']} | {line['seconds']:.1f} |"
        )
    return "\n".join(rows)


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Over the number of erasers: what is erased, at worst too, and what is kept of the rest."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True)
    for k, way in enumerate(dict.fromkeys(line["way"] for line in lines)):
        own = sorted((x for x in lines if x["way"] == way), key=lambda line: line["erasers"])
        counts = [line["erasers"] for line in own]
        gone = [[100 * (1 - n / ERASED_PICTURES) for n in x["left"].values()] for x in own]
        panels[0].plot(counts, [sum(g) / len(g) for g in gone], "o-", color=f"C{k}", label=way)
        panels[0].plot(counts, [min(g) for g in gone], "v:", color=f"C{k}")
        panels[1].plot(counts, [share([line["rest"]]) for line in own], "o-", color=f"C{k}")
    panels[0].set(xlabel="erasers", ylabel="ESR, mean and (dotted) worst, %")
    panels[1].set(xlabel="erasers", ylabel="others kept, % of the base")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 5, 10, 20])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("build/stacking.jsonl"))
    parser.add_argument("--plot", type=Path, default=None, help="write the curves here")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {(line["way"], line["erasers"]) for line in lines}
    pictures = Pictures()
    for count in () if options.table else options.counts:
        for way in options.ways:
            if (way, count) in done:
                continue
            lines.append(counted(way, MIXED[:count], pictures))
            append_lines(options.out, lines[-1])
            print(way, count, lines[-1]["left"], lines[-1]["rest"], flush=True)
    print(table(lines))
    if options.plot:
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
