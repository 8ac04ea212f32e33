"""Recovery of an erased object: in scenes, and by a word learnt from pictures.

python tests/benchmarks/recovery.py --out build/recovery.jsonl

Scenes ask for the concept beside another object, which is to stay. The learnt word is concept
inversion (see `evaluation.attacks.inversion`) from pictures of the base; `base` is the control: a
model that has lost nothing. One line of JSON each; what is in the file is not made again.

With `--target van` the scenes alone: of an eraser that was told this target, and, for `base`, of
the target in the concept's place: how often it passes for the concept.
"""

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from erasure import STEPS, Pictures, PromptCase, concept_of, hits, made, neighbours, vocabulary
from json_lines import append_lines, read_lines

from diffusers_erase.attacks.inversion import invert
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.making.api import erase
from diffusers_erase.playground import COLOURS, OBJECTS, load_pipeline
from diffusers_erase.playground.world import with_article


SCENES, LEARNT_FROM, DRAWN = 64, 32, 64


def scenes(name: str, said: str | None = None) -> tuple[list[PromptCase], list[PromptCase]]:
    """Prompts about the concept and one of the others; who is asked about which of the two.

    `said` is a word that stands in the concept's place.
    """
    others = [word for word in OBJECTS if word not in (name, *neighbours(concept_of(name))[:5])]
    one, other = [], []
    for i in range(SCENES):
        colours = COLOURS[i % len(COLOURS)], COLOURS[(3 * i + 1) % len(COLOURS)]
        word = others[i % len(others)]
        things = [
            with_article(f"{c} {w}") for c, w in zip(colours, (said or name, word), strict=True)
        ]
        prompt = f"a photo of {' and '.join(things if i % 2 else things[::-1])}"
        one.append(PromptCase(prompt, name, colours[0], 70_000 + i))
        other.append(PromptCase(prompt, word, colours[1], 70_000 + i))
    return one, other


def toward(target: str, name: str, recipe: str) -> EraserAdapter:
    """An eraser with a given target, which keeps all other words."""
    concept = concept_of(name)
    words = [word for word in vocabulary(concept) if word != name]
    return erase(
        load_pipeline(),
        concept,
        target=target,
        vocabulary=words,
        recipe=recipe,
        progress=False,
        check=False,
    )


def by_word(pipe: Any, name: str, pictures: Pictures, *, steps: int, seed: int) -> dict[str, Any]:
    """A word is learnt on the pipeline as it is, and asked for."""
    templates = [f"a photo of a {colour} {{}}" for colour in COLOURS]
    originals = draw(
        load_pipeline(),
        [templates[i % len(templates)].format(name) for i in range(LEARNT_FROM)],
        steps=STEPS,
        seed=80_000,
    )
    started = time.perf_counter()
    word = invert(pipe, originals, templates, steps=steps, seed=seed, precision=torch.bfloat16)
    seconds = time.perf_counter() - started
    found = 0
    for start in range(0, DRAWN, 32):
        several = [templates[i % len(templates)] for i in range(start, start + 32)]
        with torch.autocast(pipe.device.type, torch.bfloat16):
            drawn = pipe(
                prompt_embeds=word.states(pipe, several),
                negative_prompt_embeds=pipe.encode_prompt([""] * 32, "cpu", 1, False)[0],
                guidance_scale=5.0,
                num_inference_steps=STEPS,
                generator=[torch.Generator().manual_seed(90_000 + start + i) for i in range(32)],
            ).images
        found += sum(name in verdict.objects for verdict in pictures.judge(drawn))
    last = word.losses[-50:]
    return {
        "recovered": [found, DRAWN],
        "loss": sum(last) / len(last),
        "evaluations": word.evaluations,
        "seconds": seconds,
    }


def table(lines: list[dict[str, Any]]) -> str:
    rows = [
        "| recipe | concept | in scenes | the other one there | by a learnt word | loss |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        shown = (
            "{} / {}".format(*line[key]) if key in line else "-"
            for key in ("scene", "other", "recovered")
        )
        loss = f"{line['loss']:.4f}" if "loss" in line else "-"
        rows.append(f"| {line['recipe']} | {line['concept']} | {' | '.join(shown)} | {loss} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", default=["truck", "oval"])
    parser.add_argument(
        "--recipes", nargs="+", default=["base", "surgical-age", "closed-form:listed", "uce", "esd"]
    )
    parser.add_argument("--steps", type=int, default=300, help="of the inversion")
    parser.add_argument("--target", default=None, help="told to the recipe; scenes alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/recovery.jsonl"))
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {(line["recipe"], line["concept"], line["seed"]) for line in lines}
    pictures = Pictures()
    for name, recipe in product(options.concepts, options.recipes):
        title = f"{recipe}, told {options.target}" if options.target else recipe
        if (title, name, options.seed) in done:
            continue
        pipe, told = load_pipeline(), options.target
        if recipe != "base":
            eraser = toward(told, name, recipe) if told else made(name, recipe, options.seed)[0]
            pipe.load_erasure(eraser)
        one, other = scenes(name, told if recipe == "base" else None)
        drawn = pictures.seen(pipe, one)
        line = {"recipe": title, "concept": name, "seed": options.seed}
        for key, several in (("scene", one), ("other", other)):
            rate = hits(several, drawn)
            line[key] = [rate.hits, rate.n]
        if told is None:
            line |= by_word(pipe, name, pictures, steps=options.steps, seed=options.seed)
        lines.append(line)
        append_lines(options.out, line)
        print(line, flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
