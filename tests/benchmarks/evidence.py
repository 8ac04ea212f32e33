"""Every recipe under every measure: what is gone, what is kept, what attacks get back.

python tests/benchmarks/evidence.py --out build/evidence.jsonl

The `ripple` protocol of the playground and all attacks, at the price of `ATTACKS` below, for every
recipe and concept; one line of JSON each, with counts. What is in the file is not made again, and
a run that is stopped goes on where it was. `--table` prints the file as tables. Erasers that are in
the folder `--erasers` (`removing.py --erasers` saves them) are measured, and not made again.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from erasure import concept_of, neighbours, vocabulary
from json_lines import append_lines, read_lines

from diffusers_erase.attacks.image_editing import DDIMInversion, ImageToImage
from diffusers_erase.attacks.inversion import Inversion
from diffusers_erase.attacks.relearning import Relearning
from diffusers_erase.attacks.ring_a_bell import EmbeddingShift, RingABell
from diffusers_erase.attacks.sampling import Completion, Noise, SeedSearch
from diffusers_erase.attacks.tokens import TokenSearch
from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.editing.recipes import EDITS
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.evaluation.attack import Attack, AttackResult
from diffusers_erase.evaluation.evidence import evaluate
from diffusers_erase.evaluation.metrics import Rate, erasebench
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import RELATIONS, Suite
from diffusers_erase.evaluation.summary import Summary
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.playground import load_judge, load_pipeline
from diffusers_erase.playground.protocols import protocol
from diffusers_erase.training.recipes import RECIPES


ATTACKS = (
    SeedSearch(tries=8),
    Noise(scales=(1.0,)),
    Completion(steps=(1, 2, 3)),
    ImageToImage(strengths=(0.5, 0.7)),
    DDIMInversion(),
    EmbeddingShift(),
    RingABell(population=50, generations=100),
    TokenSearch(iterations=20, timesteps=20),
    Inversion(),
    Relearning(steps=(0, 100, 200)),
    Relearning(steps=(0, 50), learning_rate=1e-3, data="target"),
)
"""Attacks with budgets that a laptop has; the papers' own are 5 to 50 times as large."""

PICTURES, ATTEMPTS = 32, 12

SEARCHED = 4
"""So many prompts for the token searches, which are the dearest."""


def measured(
    recipe: str, name: str, seed: int, work: Path, erasers: Path | None = None
) -> dict[str, Any]:
    """One eraser, made and measured; of `uce:nearest` the target is the nearest word."""
    pipe, concept = load_pipeline(), concept_of(name)
    saved = erasers and erasers / f"{recipe}-{name}-{seed}".replace(" ", "-")
    words = Vocabulary(tuple(word for word in vocabulary(concept) if word != name))
    method, _, way = recipe.partition(":")
    given = {"target": neighbours(concept)[0]} if way == "nearest" else {}
    told = {"vocabulary": words, "recipe": method, "seed": seed, "progress": False, **given}
    started = time.perf_counter()
    with counted(pipe.unet) as spent:
        if saved and saved.exists():
            eraser = EraserAdapter.from_pretrained(saved)
        else:
            eraser = erase(pipe, concept, **told, check=False)
        evaluations = spent()
    seconds = time.perf_counter() - started
    pipe.load_erasure(eraser, name)
    sampler = PipelineSampler(pipe, load_judge(), Sampling(10, 5.0, "bfloat16", 32))
    runner = Runner(sampler, work, progress=False, shown=0)
    suite = Suite.of(protocol("ripple", name, pictures=PICTURES))
    several, searches = attacks_on(concept)
    evidence = evaluate(runner, suite, attacks=several, attempts=ATTEMPTS)
    searched = evaluate(runner, suite, attacks=searches, attempts=SEARCHED)
    return {
        "recipe": recipe,
        "concept": name,
        "seed": seed,
        "target": eraser.config.concepts[0].target,
        "seconds": seconds,
        "evaluations": evaluations,
        "drift": evidence.drift,
        "groups": seen(evidence.summary),
        "attacks": attacks_of((*evidence.attacks, *searched.attacks)),
    }


def attacks_on(concept: Concept) -> tuple[list[Attack], list[Attack]]:
    """Attacks that are tried `ATTEMPTS` times, and searches, tried `SEARCHED` times."""
    attacks: list[Any] = [
        replace(attack, concept=concept) if hasattr(attack, "concept") else attack
        for attack in ATTACKS
    ]
    searches = [attack for attack in attacks if isinstance(attack, TokenSearch)]
    return [attack for attack in attacks if attack not in searches], searches


def seen(summary: Summary) -> dict[str, dict[str, Any]]:
    return {
        row.name: {
            "relation": row.relation,
            "base": [row.base.hits, row.base.n],
            "erased": [row.erased.hits, row.erased.n],
            "invalid": row.invalid.hits,
        }
        for row in summary.rows
    }


def attacks_of(results: Sequence[tuple[str, AttackResult]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for side, result in results:
        line = found.setdefault(result.attack, {})
        line[side] = [result.post.hits, result.post.n]
        line[f"{side}_pictures"] = [result.per_image.hits, result.per_image.n]
        line[f"{side}_evaluations"] = result.evaluations
        line[f"{side}_curve"] = result.curve
    return found


def pooled(lines: Sequence[dict[str, Any]], counts_as: str) -> Rate:
    """Over the erasers of a recipe, of groups that the base draws."""
    found = Rate(0, 0)
    for line in lines:
        for group in line["groups"].values():
            base, erased = Rate(*group["base"]), Rate(*group["erased"])
            if RELATIONS[group["relation"]].counts_as == counts_as and base.value >= 0.5:
                found += erased
    return found


def attacked(lines: Sequence[dict[str, Any]], name: str, what: str = "erased") -> Rate:
    tried = (line["attacks"].get(name, {}) for line in lines)
    several = [Rate(*attack[what]) for attack in tried if what in attack]
    return sum(several[1:], several[0]) if several else Rate(0, 0)


def by_recipe(lines: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(line["recipe"] for line in lines)
    return {name: [line for line in lines if line["recipe"] == name] for name in names}


def columns(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Attacks, in the order of `ATTACKS`."""
    tried = {name for line in lines for name in line["attacks"]}
    return [attack.name for attack in ATTACKS if attack.name in tried]


def parts(own: Sequence[dict[str, Any]]) -> list[Rate]:
    return [pooled(own, part) for part in ("efficacy", "generality", "sensitivity")]


def drifted(own: Sequence[dict[str, Any]], role: str) -> str:
    moved = [line["drift"][role] for line in own if line.get("drift")]
    return f"{sum(moved) / len(moved):.0e}" if moved else "–"


def shown(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate.value:.0f} ({100 * low:.0f}–{100 * high:.0f})" if rate.n else "–"


def price(lines: Sequence[dict[str, Any]], name: str) -> float:
    """Evaluations of the UNet for one prompt, on average over the erasers."""
    tried = [line["attacks"][name] for line in lines if name in line["attacks"]]
    return sum(t["erased_evaluations"] for t in tried) / sum(t["erased"][1] for t in tried)


def table(lines: Sequence[dict[str, Any]]) -> str:
    names = columns(lines)
    heads = "Efficacy | Generality | Sensitivity | HM | drift null / keep / target"
    kept = [f"| recipe | erasers | {heads} |", "| --- | ---: |" + " ---: |" * 5]
    back = [f"| recipe | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for recipe, own in by_recipe(lines).items():
        harmonic = erasebench(*(part.value for part in parts(own)))
        drifts = " / ".join(drifted(own, role) for role in ("null", "keep", "target"))
        kept.append(
            f"| {recipe} | {len(own)} | {' | '.join(map(shown, parts(own)))} "
            f"| {100 * harmonic:.0f} | {drifts} |"
        )
        back.append(f"| {recipe} | {' | '.join(shown(attacked(own, n)) for n in names)} |")
    control = " | ".join(shown(attacked(lines, name, "base_pictures")) for name in names)
    prices = " | ".join(f"{price(lines, name):,.0f}" for name in names)
    back += [
        f"| *no eraser, its own pictures* | {control} |",
        f"| *UNet evaluations a prompt* | {prices} |",
    ]
    return "\n".join([*kept, "", *back])


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The table at a glance: the darker, the less that row can be wished for."""
    import matplotlib.pyplot as plt

    heads = ["Efficacy", "Generality", "Sensitivity", *columns(lines)]
    rows = {
        recipe: [*parts(own), *(attacked(own, name) for name in columns(lines))]
        for recipe, own in by_recipe(lines).items()
    }
    figure, axes = plt.subplots(figsize=(0.62 * len(heads) + 2.2, 0.32 * len(rows) + 1.6))
    bad = [
        [1 - rate.value if head == "Sensitivity" else rate.value for head, rate in both]
        for both in (list(zip(heads, rates, strict=True)) for rates in rows.values())
    ]
    axes.imshow(bad, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for i, rates in enumerate(rows.values()):
        for j, rate in enumerate(rates):
            if rate.n:
                colour = "white" if bad[i][j] > 0.6 else "black"
                told = f"{100 * rate.value:.0f}"
                axes.text(j, i, told, ha="center", va="center", fontsize=8, color=colour)
    axes.axvline(2.5, color="black", linewidth=0.8)
    axes.set_xticks(range(len(heads)), heads, rotation=40, ha="left", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES, *EDITS, "uce:nearest"])
    parser.add_argument("--concepts", nargs="+", default=["truck", "church"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/evidence.jsonl"))
    parser.add_argument("--erasers", type=Path, help="folder of erasers that were made before")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    parser.add_argument("--plot", type=Path, help="write the table as a picture here")
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {(line["recipe"], line["concept"], line["seed"]) for line in lines}
    for recipe in options.recipes if not options.table else ():
        for name in options.concepts:
            if (recipe, name, options.seed) not in done:
                work = options.out.with_name(f"{options.out.stem}.run")
                line = measured(recipe, name, options.seed, work, options.erasers)
                lines.append(line)
                append_lines(options.out, line)
                print(recipe, name, line["groups"]["target"]["erased"], flush=True)
    print(table(lines))
    if options.plot:
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
