"""Which target, with or without the exact constraint, with or without a preservation pool.

python tests/benchmarks/ablation.py --out build/ablation.jsonl --plot docs/images/ablation.png

Same optimiser and budget for all 32 combinations of each concept; resumable, one line of JSON each.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from erasure import Counts, Pictures, concept_of, measured, table, vocabulary
from json_lines import append_lines, read_lines

from diffusers_erase.concepts import Vocabulary
from diffusers_erase.concepts.candidates import proposed
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.playground import FAMILY_OF, load_pipeline
from diffusers_erase.training.adaptive import Adaptive
from diffusers_erase.training.objectives import Keep
from diffusers_erase.training.recipes import SURGICAL_AGE
from diffusers_erase.training.targets import Fixed, Nearest
from diffusers_erase.training.trial import Trial


TARGETS = (
    "empty prompt", "stripped", "general word", "random", "nearest", "minimax", "table", "trial",
)  # fmt: skip


LOOKED_AT = Counts(target=32, near=12, far=40, unlisted=24, each=5)


def target_of(kind: str, name: str, words: list[str]) -> Any:
    """The target of that kind for a concept."""
    vocabulary, concept = Vocabulary(tuple(words)), concept_of(name)
    random_word = random.Random(name).choice(
        proposed(concept, [concept], words) or vocabulary.others([concept])
    )
    return {
        "empty prompt": Fixed("", whole=True),
        "stripped": Fixed(None),
        "general word": Fixed(FAMILY_OF.get(name, "painter")),
        "random": Fixed(random_word),
        "nearest": Nearest(vocabulary),
        "minimax": Adaptive(vocabulary, form="minimax"),
        "table": Adaptive(vocabulary, form="table"),
        "trial": Trial(vocabulary),
    }[kind]


WAYS = {"plain": "", "held": ", held", "pool": ", pool", "held, pool": ", held, pool"}
"""Suffixes of a target's name: the exact constraint, the preservation pool."""


def short(lines: Sequence[dict[str, Any]]) -> str:
    """A row for every target: what is erased, and the harm of the four ways."""
    rows = [
        f"| target | ESR (worst), held and pool | damage near: {' / '.join(WAYS)} | evaluations |",
        "| --- | ---: | ---: | ---: |",
    ]
    for target in TARGETS:
        by_way = {w: [x for x in lines if x["recipe"] == target + WAYS[w]] for w in WAYS}
        groups = ("target", "synonym")
        each = [
            [sum(x[g]["erased"][k] for g in groups if g in x) for k in (0, 1)]
            for x in by_way["held, pool"]
        ]
        gone = [100 - 100 * hits / n for hits, n in each]
        harm = [mean(d for x in own for d in x["damage"]["neighbours"]) for own in by_way.values()]
        cost = mean(x["evaluations"] for x in by_way["held, pool"])
        shown = " / ".join(f"{h:.4f}" for h in harm)
        rows.append(f"| {target} | {mean(gone):.1f} % ({min(gone):.0f}) | {shown} | {cost:,.0f} |")
    return "\n".join(rows)


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """For every target and the four ways to protect: what is left of the concept, and the harm."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 1, figsize=(9, 6), sharex=True)
    for k, (label, suffix) in enumerate(WAYS.items()):
        left, hurt = [], []
        for target in TARGETS:
            own = [line for line in lines if line["recipe"] == target + suffix]
            drawn = [line["target"]["erased"] for line in own]
            left.append(mean(100 * hits / n for hits, n in drawn) if own else float("nan"))
            damage = [x for line in own for x in line["damage"]["neighbours"]]
            hurt.append(mean(damage) if own else float("nan"))
        places = [i + 0.2 * (k - 1.5) for i in range(len(TARGETS))]
        panels[0].bar(places, left, 0.18, label=label)
        panels[1].bar(places, hurt, 0.18)
    panels[0].set_ylabel("pictures with the concept, %")
    panels[0].legend(fontsize=8)
    panels[1].set(ylabel="damage to the nearest five", yscale="log")
    panels[1].set_xticks(range(len(TARGETS)), TARGETS)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=["truck", "oval", "church", "van gyre"])
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/ablation.jsonl"))
    parser.add_argument("--plot", type=Path, default=None, help="write the bars here")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {(line["recipe"], line["concept"]) for line in lines}
    pictures = Pictures()
    targets = () if options.table else options.targets
    ways = product(options.concepts, targets, (False, True), (False, True))
    for name, kind, held, pool in ways:
        title = f"{kind}{', held' if held else ''}{', pool' if pool else ''}"
        if (title, name) in done:
            continue
        pipe, concept = load_pipeline(), concept_of(name)
        words = [word for word in vocabulary(concept) if word != name]
        keeps_target = kind in ("minimax", "table")
        recipe = replace(
            SURGICAL_AGE,
            name=title,
            protect_null=held,
            pool=SURGICAL_AGE.pool if pool else 0,
            keep=((1.0, Keep("target", at="concept")),) if keeps_target else (),
        )
        started = time.perf_counter()
        with counted(pipe.unet) as cost:
            eraser = erase(
                pipe,
                concept,
                target=target_of(kind, name, words),
                vocabulary=words,
                recipe=recipe,
                seed=options.seed,
                progress=False,
                check=False,
            )
        line = {"recipe": title, "concept": name, "seed": options.seed, "evaluations": cost()}
        line["seconds"] = time.perf_counter() - started
        line["choices"] = eraser.config.to_dict()["concepts"]
        line |= measured(name, eraser, pictures, LOOKED_AT)
        lines.append(line)
        append_lines(options.out, line)
        print(name, title, line["target"]["erased"], line["neighbours"]["erased"], flush=True)
    print(table(lines))
    if not set(options.targets) - {line["recipe"].split(",")[0] for line in lines}:
        print(f"\n{short(lines)}")
    if options.plot:
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
