"""UNet evaluations and seconds of an eraser, beside the released loops of ESD and AGE.

python tests/benchmarks/cost.py --concept truck

All run one after the other in this process, from the same prompts. Evaluations are counted by a
hook on the UNet (a forward of one latent is one, its backward two, sampling included).
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from erasure import KEPT, Pictures, concept_of, measured, neighbours, vocabulary
from peers import Loop, age, esd, uce

from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.playground import load_pipeline
from diffusers_erase.training.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Ran:
    """One way to erase, and its price."""

    name: str
    tuples: int
    """Latents that were trained on, each with a forward and a backward."""
    evaluations: int
    seconds: float
    eraser: Any


def ran(name: str, tuples: int, make: Callable[[Any], Any]) -> Ran:
    pipe = load_pipeline()
    started = time.perf_counter()
    with counted(pipe.unet) as evaluations:
        eraser = make(pipe)
        return Ran(name, tuples, evaluations(), time.perf_counter() - started, eraser)


def priced(runs: Sequence[Ran]) -> str:
    """A table of the cost of each way, in all and by tuple."""
    rows = [
        "| way | tuples | UNet evaluations | a tuple | s | a tuple, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        tuples = run.tuples or float("nan")
        rows.append(
            f"| {run.name} | {run.tuples} | {run.evaluations:,} | {run.evaluations / tuples:.1f} "
            f"| {run.seconds:.1f} | {1000 * run.seconds / tuples:.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concept", default="truck")
    parser.add_argument("--recipe", default="surgical-age")
    parser.add_argument("--updates", type=int, default=200, help="of the released loops")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of the released loops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-pictures", action="store_true", help="count and time, no more")
    options = parser.parse_args()
    concept, recipe = concept_of(options.concept), RECIPES[options.recipe]
    words = [word for word in vocabulary(concept) if word != concept.name]
    examples = concept.example_prompts(recipe.trajectories)
    prompts = [prompt.text for prompt in examples]
    near = neighbours(concept)

    def released(pipe: Any) -> Loop:
        answers = [prompt.without() for prompt in examples]
        return Loop(pipe, prompts, answers, options.learning_rate, seed=options.seed)

    def by_esd(pipe: Any) -> Any:
        loop = released(pipe)
        esd(loop, options.updates)
        return loop.eraser(concept, "esd, released loop")

    def by_age(pipe: Any) -> Any:
        loop = released(pipe)
        age(loop, options.updates, near[:20], concept)
        return loop.eraser(concept, "age, released loop")

    def ours(recipe: Recipe, pipe: Any) -> Any:
        return erase(
            pipe,
            concept,
            vocabulary=words,
            recipe=recipe,
            seed=options.seed,
            progress=False,
            check=False,
        )

    long = replace(
        recipe,
        name=f"{recipe.name}, long",
        trajectories=16,
        sampling_steps=12,
        pool=32,
        steps=90,
        batch=12,
    )
    kept = 2 if recipe.pool else 1
    runs = [
        ran(each.name, each.steps * each.batch * kept, partial(ours, each))
        for each in (recipe, long)
    ]
    runs += [
        ran("uce, retaining all", 0, lambda pipe: uce(pipe, concept, near[0], words)),
        ran("esd, released loop", options.updates, by_esd),
        ran("age, released loop", 2 * options.updates, by_age),
    ]
    if options.no_pictures:
        print(priced(runs))
        return
    pictures = Pictures()
    print(
        f"'{concept.name}', {torch.get_num_threads()} threads; learning rate of the released ",
        end="",
    )
    print(f"loops {options.learning_rate:g}, {options.updates} updates.\n")
    print("| way | tuples | UNet evaluations | a tuple | s | target drawn | by synonym ", end="")
    print("| neighbours | others | unlisted | damage near / far / unlisted |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for run in runs:
        found = measured(concept.name, run.eraser, pictures)
        shown = [
            "{} / {} (base {})".format(*found[g]["erased"], found[g]["base"][0])
            if g in found
            else "-"
            for g in ("target", "synonym", *KEPT)
        ]
        mean = {g: sum(x) / len(x) for g, x in found["damage"].items() if isinstance(x, list)}
        each = f"{run.evaluations / run.tuples:.1f}" if run.tuples else "-"
        print(
            f"| {run.name} | {run.tuples} | {run.evaluations:,} | {each} | {run.seconds:.0f} | "
            + " | ".join(shown)
            + " | "
            + " / ".join(f"{mean[g]:.3f}" for g in KEPT)
            + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
