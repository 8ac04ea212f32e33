"""Many erasers on one model: their plain sum, Gram fusion, and one solution for all concepts.

python tests/benchmarks/stacking.py --out build/stacking.jsonl

Every eraser is made alone first, in closed form, and knows nothing of the others: so it may answer
its concept as one that another eraser takes away. Two objects in one picture are counted by
themselves: `scenes` are of words that are kept, `beside` of an erased one and a kept one.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from erasure import (
    CONCEPTS,
    STYLE_OF,
    Pictures,
    PromptCase,
    asked,
    concept_of,
    damage,
    hits,
    null_drift,
    share,
)
from json_lines import append_lines, read_lines

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.stacking import KEEP, Rest, summed
from diffusers_erase.making.api import erase
from diffusers_erase.making.stacked import stack
from diffusers_erase.playground import COLOURS, OBJECTS, JudgeVerdict, load_pipeline
from diffusers_erase.playground.world import with_article


ALL = (*OBJECTS, *STYLE_OF)
ERASED_PICTURES = 16


@dataclass(frozen=True)
class Counts:
    """Numbers of pictures."""

    erased: int = ERASED_PICTURES
    """Of each erased concept."""
    kept: int = 4
    """Of each other word."""
    scenes: int = 64
    """Of two kept objects, and of an erased object beside a kept one."""
    every: int = 1
    """The damage to the rest is measured on every so many words."""


MIXED = [CONCEPTS[7 * k % len(CONCEPTS)] for k in range(len(CONCEPTS))]
"""Objects and styles in an order in which families do not come together."""


TOLD = {"all": ALL, "nothing": None}
"""Words that each eraser is told of when it is made, and that fusion is told of."""


@cache
def alone(name: str, told: str) -> EraserAdapter:
    """The closed form, told of all other words or of none."""
    known = TOLD[told]
    words = known and [word for word in known if word != name]
    return erase(
        load_pipeline(), concept_of(name), vocabulary=words, recipe="closed-form", check=False
    )


def by_sum(names: Sequence[str], told: str) -> EraserAdapter:
    return summed([alone(name, told) for name in names])


def by_gram(
    names: Sequence[str], told: str, rest: Rest = "nothing", keep_weight: float = KEEP
) -> EraserAdapter:
    several = [alone(name, told) for name in names]
    return stack(
        several,
        load_pipeline(),
        fusion="gram",
        vocabulary=[word for word in TOLD[told] or () if word not in names],
        rest=rest,
        keep_weight=keep_weight,
    )


def by_solving(names: Sequence[str], told: str) -> EraserAdapter:
    concepts = [concept_of(name) for name in names]
    return erase(
        load_pipeline(), concepts, vocabulary=TOLD[told], recipe="closed-form", check=False
    )


WAYS: dict[str, Callable[[Sequence[str], str], EraserAdapter]] = {
    "sum": by_sum,
    "Gram fusion": by_gram,
    "solved together": by_solving,
    "Gram fusion, κ = 10": partial(by_gram, keep_weight=10.0),
    "Gram fusion, κ = 20": partial(by_gram, keep_weight=20.0),
    "Gram fusion, κ = 10, the rest as in the sum": partial(by_gram, rest="sum", keep_weight=10.0),
}


def scenes_of(words: Sequence[str], others: Sequence[str], count: int) -> list[PromptCase]:
    """Two things in one picture, one of `words` and one of `others`, in two colours."""
    chance, found = random.Random(5), []
    for i in range(count):
        one = words[i % len(words)]
        other = chance.choice([word for word in others if word != one])
        first, second = chance.sample(COLOURS, 2)
        things = [with_article(f"{first} {one}"), with_article(f"{second} {other}")]
        prompt = f"a photo of {' and '.join(things[:: -1 if i % 2 else 1])}"
        found.append(PromptCase(prompt, f"{one} and {other}", first, 50_000 + i))
    return found


def present(several: Sequence[PromptCase], verdicts: Sequence[JudgeVerdict]) -> list[list[bool]]:
    """Of each scene whether its first and its second object are seen."""
    return [
        [word in v.objects for word in a.word.split(" and ")]
        for a, v in zip(several, verdicts, strict=True)
    ]


def counted(
    way: str, names: Sequence[str], told: str, counts: Counts, pictures: Pictures
) -> dict[str, Any]:
    pipe, rest = load_pipeline(), [word for word in ALL if word not in names]
    for name in names:
        alone(name, told)
    started = time.perf_counter()
    eraser = WAYS[way](names, told)
    line: dict[str, Any] = {"way": way, "erasers": len(names), "rank": eraser.config.rank}
    line |= {"told": told, "pictures": counts.erased, "seconds": time.perf_counter() - started}
    erased, kept = ([w for w in words if w in OBJECTS] for words in (names, rest))
    groups = {
        "erased": [a for name in names for a in asked(name, name, counts.erased)],
        "rest": [a for word in rest for a in asked(word, word, counts.kept)],
        "scenes": scenes_of(kept, kept, counts.scenes),
        "beside": scenes_of(erased, kept, counts.scenes) if erased else [],
    }
    base = {group: pictures.of_base(pipe, several) for group, several in groups.items()}
    pipe.load_erasure(eraser)
    after = {group: pictures.seen(pipe, several) for group, several in groups.items()}
    line["left"] = {
        name: hits(
            groups["erased"][i : i + counts.erased], after["erased"][i : i + counts.erased]
        ).hits
        for name, i in zip(names, range(0, len(groups["erased"]), counts.erased), strict=True)
    }
    for group in ("rest", "scenes", "beside"):
        line[group] = {"n": len(groups[group])}
    for which, seen in (("base", base), ("erased", after)):
        found = hits(groups["rest"], seen["rest"])
        line["rest"][which] = [found.hits, found.n]
        line["scenes"][which] = sum(map(all, present(groups["scenes"], seen["scenes"])))
        beside = present(groups["beside"], seen["beside"])
        line["beside"][which] = [sum(column) for column in zip(*beside, strict=True)]
    line["damage"] = [damage(pipe, word) for word in rest[:: counts.every]]
    line["null_drift"] = null_drift(pipe, names[0])
    pipe.unload_erasures()
    return line


def table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| erasers | told of | way | ESR (worst) | rest kept | scenes kept | beside: left, other "
        "kept | damage to the rest | null drift | rank | s |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in sorted(lines, key=lambda line: line["erasers"]):
        each = line.get("pictures", ERASED_PICTURES)
        gone = [100 * (1 - left / each) for left in line["left"].values()]
        scenes = beside = "-"
        if "scenes" in line:
            scenes = f"{line['scenes']['erased']} of {line['scenes']['base']}"
            (_, other), (left, still) = line["beside"]["base"], line["beside"]["erased"]
            beside = f"{left} of {line['beside']['n']}, {still} of {other}"
        rows.append(
            f"| {line['erasers']} | {line.get('told', 'all')} | {line['way']} "
            f"| {sum(gone) / len(gone):.1f} % ({min(gone):.0f}) | {share([line['rest']]):.1f} % "
            f"| {scenes} | {beside} | {sum(line['damage']) / len(line['damage']):.3f} "
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
        each = [x.get("pictures", ERASED_PICTURES) for x in own]
        gone = [
            [100 * (1 - n / k) for n in x["left"].values()] for x, k in zip(own, each, strict=True)
        ]
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
    parser.add_argument("--told", choices=list(TOLD), default="all", help="words erasers know of")
    for name, value in asdict(Counts()).items():
        parser.add_argument(f"--{name}", type=int, default=value, help="see `Counts`")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("build/stacking.jsonl"))
    parser.add_argument("--plot", type=Path, default=None, help="write the curves here")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {(line["way"], line["erasers"], line.get("told", "all")) for line in lines}
    kept = Path(f"build/base-{options.precision}.jsonl")
    pictures = Pictures(kept, getattr(torch, options.precision))
    counts = Counts(*(getattr(options, field.name) for field in fields(Counts)))
    for count in () if options.table else options.counts:
        for way in options.ways:
            if (way, count, options.told) in done:
                continue
            lines.append(counted(way, MIXED[:count], options.told, counts, pictures))
            append_lines(options.out, lines[-1])
            print(way, count, lines[-1]["left"], lines[-1]["rest"], flush=True)
    print(table(lines))
    if options.plot:
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
