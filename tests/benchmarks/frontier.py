"""Erasure against damage in the course of training: one curve per recipe.

python tests/benchmarks/frontier.py --plot docs/images/frontier.png

Every recipe at several learning rates, looked at after several numbers of steps; UCE at several
ridges. One line of JSON per look; runs that are in the file already are not made again.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erasure import Pictures, asked, concept_of, damage, hits, neighbours, vocabulary
from json_lines import append_lines, read_lines
from peers import uce

from diffusers_erase.concepts import Vocabulary
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.playground import load_pipeline
from diffusers_erase.training.recipes import RECIPES, Recipe
from diffusers_erase.training.targets import Nearest


TARGET_PICTURES, NEAR_WORDS, NEAR_PICTURES, FAR_EVERY = 32, 5, 8, 5
NEAR = "near target + pool"
RIDGES = (0.01, 0.1, 1.0, 10.0)


@dataclass
class Looks:
    """The counts at each look, appended to a file."""

    name: str
    out: Path
    pictures: Pictures

    def __post_init__(self) -> None:
        order, pipe = neighbours(concept_of(self.name)), load_pipeline()
        self.near, self.far = order[:NEAR_WORDS], order[NEAR_WORDS::FAR_EVERY]
        self.groups = {
            "target": asked(self.name, self.name, TARGET_PICTURES),
            "neighbours": [a for word in self.near for a in asked(word, word, NEAR_PICTURES)],
        }
        self.base = {k: hits(g, self.pictures.of_base(pipe, g)) for k, g in self.groups.items()}

    def look(self, pipe: Any, **run: Any) -> dict[str, Any]:
        """Count on the pipeline as it is, and write it down."""
        line = {"concept": self.name, **run}
        for group, several in self.groups.items():
            drawn = hits(several, self.pictures.seen(pipe, several))
            line[group] = {"base": self.base[group].hits, "erased": drawn.hits, "n": drawn.n}
        line["near_damage"] = sum(damage(pipe, word) for word in self.near) / len(self.near)
        line["far_damage"] = sum(damage(pipe, word) for word in self.far) / len(self.far)
        append_lines(self.out, line)
        print(json.dumps(line), flush=True)
        return line


def trained(looks: Looks, recipe: Recipe, rate: float, at: Sequence[int]) -> list[dict[str, Any]]:
    """One run of the recipe, looked at after these numbers of steps."""
    concept, pipe, lines = concept_of(looks.name), load_pipeline(), []
    words = [word for word in vocabulary(concept) if word != concept.name]
    with counted(pipe.unet) as cost:
        looked = 0

        def look(step: Any) -> None:
            nonlocal looked
            if step.index + 1 in at:
                before = cost()
                run = {"recipe": recipe.name, "rate": rate, "steps": step.index + 1}
                lines.append(looks.look(pipe, **run, evaluations=before - looked))
                looked += cost() - before

        erase(
            pipe,
            concept,
            target=Nearest(Vocabulary(tuple(words))) if recipe.name == NEAR else None,
            vocabulary=words,
            recipe=replace(recipe, steps=max(at), learning_rate=rate),
            progress=False,
            callback_on_step_end=look,
            check=False,
        )
    return lines


def solved(looks: Looks, ridge: float) -> dict[str, Any]:
    concept, pipe = concept_of(looks.name), load_pipeline()
    words = [word for word in vocabulary(concept) if word != concept.name]
    pipe.load_erasure(uce(pipe, concept, neighbours(concept)[0], words, ridge=ridge))
    return looks.look(pipe, recipe="uce", rate=ridge, steps=0, evaluations=0)


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each concept: share of pictures without it, over damage to its neighbours."""
    import matplotlib.pyplot as plt

    concepts = list(dict.fromkeys(line["concept"] for line in lines))
    recipes = list(dict.fromkeys(line["recipe"] for line in lines))
    figure, panels = plt.subplots(1, len(concepts), figsize=(5 * len(concepts), 4), squeeze=False)
    for panel, concept in zip(panels[0], concepts, strict=True):
        for k, recipe in enumerate(recipes):
            own = [x for x in lines if (x["concept"], x["recipe"]) == (concept, recipe)]
            rates = [None] if recipe == "uce" else sorted({x["rate"] for x in own})
            for rate in rates:
                curve = [x for x in own if rate is None or x["rate"] == rate]
                panel.plot(
                    [x["near_damage"] for x in curve],
                    [100 * (1 - x["target"]["erased"] / x["target"]["n"]) for x in curve],
                    "o-",
                    color=f"C{k}",
                    markersize=4,
                    linewidth=1,
                    label=recipe if rate in (None, rates[0]) else None,
                )
        panel.set(title=concept, xlabel="damage to the nearest five", xscale="log")
    panels[0][0].set_ylabel("pictures without the concept, %")
    panels[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=["truck", "van gyre"])
    parser.add_argument(
        "--recipes", nargs="+", default=["surgical-age", NEAR, "age", "all-but-one", "esd"]
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 4e-3])
    parser.add_argument("--at", nargs="+", type=int, default=[10, 25, 50, 100])
    parser.add_argument("--out", type=Path, default=Path("build/frontier.jsonl"))
    parser.add_argument("--plot", type=Path, default=None, help="write the curves here")
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {
        (x["concept"], x["recipe"], x["rate"]) for x in lines if x["steps"] in (0, max(options.at))
    }
    near = replace(RECIPES["replace"], name=NEAR, pool=RECIPES["surgical-age"].pool)
    recipes = {**RECIPES, NEAR: near}
    pictures = Pictures()
    for name in options.concepts:
        looks = Looks(name, options.out, pictures)
        lines += [solved(looks, r) for r in RIDGES if (name, "uce", r) not in done]
        for recipe in options.recipes:
            for rate in options.rates:
                if (name, recipe, rate) not in done:
                    lines += trained(looks, recipes[recipe], rate, options.at)
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(lines, options.plot)


if __name__ == "__main__":
    main()
