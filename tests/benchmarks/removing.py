"""Erasers trained against learnt words: what is left, what is kept, and what inversion regains.

python tests/benchmarks/removing.py --concepts truck --rounds 12 --out build/removing.jsonl
python tests/benchmarks/removing.py --concepts truck --recipe esd

Each round learns a word and answers it in some steps; `--recipe` takes a recipe as it is instead,
and `none` no eraser. Inversion is `attacks.inversion.invert` from 16 pictures of the base, in
float32. One line of JSON for each eraser.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from json_lines import append_lines

from diffusers_erase.attacks.inversion import invert
from diffusers_erase.concepts import with_article
from diffusers_erase.editing.recipes import EDITS, Edit
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.text_states import encode
from diffusers_erase.playground import COLOURS, FAMILIES, OBJECTS, load_judge, load_pipeline
from diffusers_erase.training.adversary import LearntWords
from diffusers_erase.training.objectives import Keep, Steer
from diffusers_erase.training.recipes import RECIPES, SURGICAL_AGE, Recipe


STEPS, LEARNT_FROM, DRAWN = 10, 16, 24
PARTS = {"kv": ("to_k", "to_v"), "all": ("to_q", "to_k", "to_v", "to_out.0")}


def recipe_of(asked: argparse.Namespace) -> Recipe | Edit:
    """The recipe of that name, or `surgical-age` with terms that face an adversary."""
    if asked.recipe:
        return RECIPES[asked.recipe] if asked.recipe in RECIPES else EDITS[asked.recipe]
    null = ((asked.null, Keep("null", at="concept")),) if asked.parts == "all" else ()
    return replace(
        SURGICAL_AGE,
        name="against-words",
        keep=((asked.weight, Steer(role="adversary")), *null),
        keep_weight=asked.keep,
        protect_null=asked.parts == "kv",
        adversaries=(
            LearntWords(
                asked.defence,
                asked.updates,
                batch=asked.batch,
                memory=asked.memory,
                learning_rate=asked.speed,
                spread=asked.spread,
            ),
        ),
        pool=asked.pool,
        parts=PARTS[asked.parts],
        rank=asked.rank,
        trajectories=24,
        sampling_steps=10,
        steps=asked.rounds * asked.defence,
        learning_rate=asked.rate,
    )


def shown(judge: Any, pictures: Sequence[Any], wanted: Sequence[str]) -> list[int]:
    """Number of pictures that show what each is to show, and of all."""
    pairs = zip(judge(pictures), wanted, strict=True)
    return [sum(name in verdict.objects for verdict, name in pairs), len(wanted)]


def coloured(names: Sequence[str]) -> list[str]:
    pairs = ((COLOURS[i % len(COLOURS)], name) for i, name in enumerate(names))
    return [f"a photo of {with_article(f'{colour} {name}')}" for colour, name in pairs]


def measured(pipe: Any, judge: Any, name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Pictures of the pipeline as it is, and those of words learnt on it."""
    near = [word for family in FAMILIES.values() if name in family for word in family]
    near = [word for word in dict.fromkeys(near) if word in OBJECTS and word != name]
    found: dict[str, Any] = {}
    for title, names, first in (
        ("left", [name] * DRAWN, 910_000),
        ("near", near * 10, 920_000),
        ("others", [word for word in OBJECTS if word != name and word not in near], 930_000),
    ):
        pictures = draw(pipe, coloured(names), steps=STEPS, seed=first)
        found[title] = shown(judge, pictures, names)
    templates = [text.replace(name, "{}") for text in coloured([name] * LEARNT_FROM)]
    given = draw(load_pipeline(), coloured([name] * LEARNT_FROM), steps=STEPS, seed=940_000)
    prompts = [templates[i % len(templates)] for i in range(DRAWN)]
    found["inversion"] = []
    for start in range(asked.starts):
        options = {"vectors": asked.vectors, "spread": 0.5 if start else 0.0}
        word = invert(
            pipe, given, templates, steps=asked.attack, seed=start, paired=True, **options
        )
        drawn = pipe(
            prompt_embeds=word.states(pipe, prompts),
            negative_prompt_embeds=encode(pipe, [""] * DRAWN),
            guidance_scale=5.0,
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(950_000 + i) for i in range(DRAWN)],
        ).images
        found["inversion"].append([*shown(judge, drawn, [name] * DRAWN), round(word.loss, 4)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concepts", nargs="+", default=["truck"])
    parser.add_argument("--recipe", choices=("none", *RECIPES, *EDITS), help="as it is")
    parser.add_argument("--attack", type=int, default=300, help="updates of the attack")
    parser.add_argument("--vectors", type=int, default=1, help="embeddings of the attack's word")
    parser.add_argument("--starts", type=int, default=1, help="of the attack; each is counted")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--updates", type=int, default=30, help="of a word in a round")
    parser.add_argument("--defence", type=int, default=20, help="steps of a round")
    parser.add_argument("--batch", type=int, default=8, help="latents per update")
    parser.add_argument("--speed", type=float, default=0.05, help="learning rate of a word")
    parser.add_argument("--spread", type=float, default=0.0, help="of a word's beginning")
    parser.add_argument("--memory", type=int, default=16)
    parser.add_argument("--parts", choices=PARTS, default="all")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--pool", type=int, default=64)
    parser.add_argument("--keep", type=float, default=8.0, help="weight of the pool")
    parser.add_argument("--weight", type=float, default=2.0, help="of the words' term")
    parser.add_argument("--null", type=float, default=16.0, help="weight of the empty prompt")
    parser.add_argument("--rate", type=float, default=2e-3, help="of learning, of the first step")
    parser.add_argument("--target", default=None, help="chosen by the recipe if omitted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/removing.jsonl"))
    asked = parser.parse_args()
    judge = load_judge()
    for name in asked.concepts:
        pipe, started = load_pipeline(), time.perf_counter()
        pipe.set_progress_bar_config(disable=True)
        with counted(pipe.unet) as cost:
            target = None
            if asked.recipe != "none":
                options = {"vocabulary": OBJECTS, "recipe": recipe_of(asked), "seed": asked.seed}
                options["target"] = asked.target
                eraser = erase(pipe, name, **options, progress=False, check=False)
                pipe.load_erasure(eraser)
                target = eraser.config.concepts[0].target
            evaluations = cost()
        seconds = time.perf_counter() - started
        settings = {k: v for k, v in vars(asked).items() if k not in ("concepts", "out")}
        line = {"concept": name, **settings, "evaluations": evaluations, "seconds": seconds}
        line |= {"target": target, **measured(pipe, judge, name, asked)}
        append_lines(asked.out, line)
        print(line, flush=True)


if __name__ == "__main__":
    main()
