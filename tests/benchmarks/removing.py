"""What inversion regains of erasers, and what they keep: any recipe, and changes of our own.

python tests/benchmarks/removing.py --concepts truck rabbit "van gyre" --out build/removing.jsonl
python tests/benchmarks/removing.py --recipes none esd stereo --attacks 300 3000 300x4
python tests/benchmarks/removing.py --rounds 4 --parts kv --rank 8
python tests/benchmarks/removing.py --concepts truck --beside rabbit oak --erasers build/erasers
python tests/benchmarks/removing.py --table --out docs/measured/removing.jsonl
python tests/benchmarks/removing.py --plot build/removing.png --out docs/measured/removing.jsonl

Concepts are objects or styles (by their painters) of the playground. Inversion is
`attacks.inversion.invert` from 16 pictures of the base, in float32, `UPDATES` or `UPDATESxVECTORS`.
Options from `--rounds` on change numbers of `surgical-remove`. One line of JSON for each eraser;
with `--erasers` they are saved in this folder, and those that are there are not made again.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from erasure import concept_of, vocabulary
from json_lines import append_lines, read_lines

from diffusers_erase.attacks.inversion import invert
from diffusers_erase.concepts import with_article
from diffusers_erase.editing.recipes import EDITS, Edit
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.evaluation.drift import base_predictions, drift
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.making.api import erase
from diffusers_erase.models.architectures import PARTS, SELF_PARTS, TEXT_PARTS
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.text_states import encode
from diffusers_erase.playground import (
    ARTISTS,
    COLOURS,
    FAMILIES,
    OBJECTS,
    JudgeVerdict,
    load_judge,
    load_pipeline,
)
from diffusers_erase.training.adversary import LearntWords
from diffusers_erase.training.nearby import NearbyStates
from diffusers_erase.training.objectives import Keep
from diffusers_erase.training.recipes import RECIPES, SURGICAL_REMOVE, Recipe
from diffusers_erase.training.regenerated import RegeneratedStates


STEPS, LEARNT_FROM, DRAWN = 10, 16, 24
TRAINED = {"kv": TEXT_PARTS, "cross": PARTS, "self": (*PARTS, *SELF_PARTS)}
ADVERSARIES = {
    "soft": LearntWords(every=1, updates=5, memory=1, tokens=8, beside=True),
    "nearby": NearbyStates(),
    "regenerated": RegeneratedStates(),
}
"""Instead of learnt words: Receler's soft tokens, RealEra's random states, RECE's states."""
STYLE_OF = {painter: style for style, painter in ARTISTS.items()}

RECIPE = (
    "rank",
    "pool",
    "keep_weight",
    "learning_rate",
    "noised",
    "trajectories",
    "batch",
)
"""Options that are numbers of the recipe."""
SEARCH = ("updates", "latents", "memory", "speed", "spread", "enough", "mixed")
"""Options that are numbers of its adversary."""


def recipe_of(asked: argparse.Namespace) -> Recipe:
    """`surgical-remove` with the numbers that are given."""
    given = {name: value for name, value in vars(asked).items() if value is not None}
    words: Any
    hard: Any
    words, hard = SURGICAL_REMOVE.adversaries
    search = {name: given[name] for name in SEARCH if name in given}
    named = {"speed": "learning_rate", "latents": "batch"}
    search = {named.get(name, name): value for name, value in search.items()}
    search |= {"mixed": bool(search["mixed"])} if "mixed" in search else {}
    facing: Any
    (weight, facing), (null, _) = SURGICAL_REMOVE.keep
    words = replace(words, every=given.get("defence", words.every), **search)
    adversary = ADVERSARIES.get(given.get("adversary"), words)
    hard = replace(hard, every=words.every, share=given.get("hard", hard.share))
    parts = TRAINED.get(given.get("parts"), SURGICAL_REMOVE.parts)
    kept = ((given.get("null", null), Keep("null", at="concept")),) if len(parts) > 2 else ()
    facing = replace(facing, eta=given.get("eta", facing.eta))
    rounds = given.get("rounds", SURGICAL_REMOVE.steps // words.every)
    return replace(
        SURGICAL_REMOVE,
        name="changed",
        keep=((given.get("weight", weight), facing), *kept) if rounds else kept,
        protect_null=len(parts) == 2,
        adversaries=(adversary, hard) if rounds else (),
        parts=parts,
        steps=rounds * words.every if rounds else SURGICAL_REMOVE.steps,
        **{name: given[name] for name in RECIPE if name in given},
    )


def prompts(names: Sequence[str]) -> list[str]:
    """A coloured object each, or an object in the style of a painter."""
    found = []
    for i, name in enumerate(names):
        if name in OBJECTS:
            found.append(f"a photo of {with_article(f'{COLOURS[i % len(COLOURS)]} {name}')}")
        else:
            thing = with_article(OBJECTS[7 * i % len(OBJECTS)])
            found.append(f"a painting of {thing} in the style of {name}")
    return found


def right(verdicts: Sequence[JudgeVerdict], wanted: Sequence[str]) -> list[int]:
    """Number of pictures that show what each is to show, and of all."""
    pairs = zip(verdicts, wanted, strict=True)
    return [
        sum(name in v.objects or v.style == STYLE_OF.get(name) for v, name in pairs),
        len(wanted),
    ]


def groups(name: str, erased: Sequence[str] = ()) -> dict[str, tuple[list[str], int]]:
    """What is asked for, besides what else is erased, and the seed of the first picture."""
    if name in STYLE_OF:
        near = [painter for painter in ARTISTS.values() if painter != name] * 7
    else:
        of_family = [word for family in FAMILIES.values() if name in family for word in family]
        near = [word for word in dict.fromkeys(of_family) if word in OBJECTS and word != name] * 10
    near = [word for word in near if word not in erased]
    others = [word for word in OBJECTS if word not in (name, *near, *erased)] * 3
    return {"left": ([name] * DRAWN, 910_000), "near": (near, 920_000), "others": (others, 930_000)}


def measured(pipe: Any, judge: Any, name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Pictures of the pipeline as it is, and those of words learnt on it."""
    found: dict[str, Any] = {}
    colours, lost = [0, 0], list[str]()
    for title, (names, first) in groups(name, asked.beside).items():
        verdicts = judge(draw(pipe, prompts(names), steps=STEPS, seed=first))
        found[title] = right(verdicts, names)
        if title != "left":
            pairs = zip(verdicts, names, strict=True)
            lost += [word for v, word in pairs if not right([v], [word])[0]]
        if title != "left" and names[0] in OBJECTS:
            wanted = (COLOURS[i % len(COLOURS)] for i in range(len(names)))
            pairs = zip(verdicts, wanted, strict=True)
            colours[0] += sum(v.colour == colour for v, colour in pairs)
            colours[1] += len(names)
    found |= {"colours": colours, "lost": lost}
    own = prompts([name] * LEARNT_FROM)
    kept = prompts(groups(name, asked.beside)["near"][0][:LEARNT_FROM])
    found["drift"] = drift(pipe, base_predictions(pipe, own, kept)).to_dict()
    templates = [text.replace(name, "{}") for text in own]
    given = draw(load_pipeline(), own, steps=STEPS, seed=940_000)
    for attack in asked.attacks:
        found[f"inversion {attack}"] = []
        for start in range(asked.starts):
            verdicts, loss = inverted(pipe, judge, templates, given, attack, start)
            line = [*right(verdicts, [name] * DRAWN), round(loss, 4)]
            found[f"inversion {attack}"].append(line)
    return found


def inverted(
    pipe: Any, judge: Any, templates: Sequence[str], given: Sequence[Any], attack: str, start: int
) -> tuple[list[JudgeVerdict], float]:
    """What the judge sees of a learnt word, and the word's loss."""
    updates, _, vectors = attack.partition("x")
    options = {"vectors": int(vectors or 1), "spread": 0.5 if start else 0.0, "paired": True}
    word = invert(pipe, given, templates, steps=int(updates), seed=start, **options)
    texts = [templates[i % len(templates)] for i in range(DRAWN)]
    drawn = pipe(
        prompt_embeds=word.states(pipe, texts),
        negative_prompt_embeds=encode(pipe, [""] * DRAWN),
        guidance_scale=5.0,
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(950_000 + i) for i in range(DRAWN)],
    ).images
    return judge(drawn), word.loss


def made(
    pipe: Any, name: str, method: str, recipe: Recipe | Edit, asked: argparse.Namespace
) -> EraserAdapter:
    """The eraser from the folder, or a new one."""
    changed = asked.changes if method == "changed" else {}
    numbers = [f"{key}-{value}" for key, value in changed.items()]
    parts = [method, name, str(asked.seed), *numbers, *([asked.target] if asked.target else [])]
    folder = asked.erasers and asked.erasers / "-".join(parts).replace(" ", "-")
    if folder and folder.exists():
        return EraserAdapter.from_pretrained(folder)
    concept = concept_of(name)
    words = [word for word in vocabulary(concept) if word != name]
    options = {"vocabulary": words, "recipe": recipe, "target": asked.target, "seed": asked.seed}
    eraser = erase(pipe, concept, **options, progress=False, check=False)
    if folder:
        eraser.save_pretrained(folder)
    return eraser


def table(lines: Sequence[dict[str, Any]]) -> str:
    """A row of markdown for each eraser; the starts of an attack one beside the other."""
    attacks = [k for line in lines for k in line if k.startswith("inversion")]
    counts = ["left", "near", "others", "colours", *dict.fromkeys(attacks)]
    rows = [["recipe", "concept -> target", "seed", *counts, "evaluations"]]
    rows.append(["---", "---", *["---:"] * (len(rows[0]) - 2)])
    for line in lines:
        changed = {**line["changes"], "target": line.get("given_target")}
        options = [f"--{k.replace('_', '-')} {v}" for k, v in changed.items() if v is not None]
        name = [] if line["recipe"] == "changed" else [line["recipe"]]
        beside = "".join(f", {other}" for other in line.get("beside", ()))
        row = [
            f"`{' '.join([*name, *options])}`",
            f"{line['concept']}{beside} -> {line.get('target')}",
            str(line["seed"]),
        ]
        for key in counts:
            found = line.get(key, [])
            found = found if found and isinstance(found[0], list) else [found] if found else []
            row.append(", ".join(f"{hits} / {n}" for hits, n, *_ in found) or "-")
        rows.append([*row, f"{line.get('evaluations', 0):,}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Share of pictures that inversion regains over the neighbours kept, a point per recipe."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for method in dict.fromkeys(line["recipe"] for line in lines):
        own = [line for line in lines if line["recipe"] == method]
        kept = sum(line["near"][0] for line in own) / sum(line["near"][1] for line in own)
        tries = [line["inversion 300"][0] for line in own if "inversion 300" in line]
        if tries:
            back = sum(hits for hits, *_ in tries) / sum(n for _, n, _ in tries)
            axes.plot(100 * kept, 100 * back, "o", label=f"{method} ({len(tries)})")
            axes.annotate(
                method,
                (100 * kept, 100 * back),
                fontsize=8,
                xytext=(4, 4),
                textcoords="offset points",
            )
    axes.set(
        xlabel="neighbours kept, %", ylabel="regained by a word of 300 updates, %", ylim=(-4, 104)
    )
    figure.savefig(path, dpi=110, bbox_inches="tight")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concepts", nargs="+", default=["truck"])
    choices = ("none", "changed", *RECIPES, *EDITS)
    parser.add_argument("--recipes", nargs="+", choices=choices, help="surgical-remove by default")
    parser.add_argument("--attacks", nargs="*", default=["300"], help="updates, or updates x words")
    parser.add_argument("--starts", type=int, default=1, help="of each attack; each is counted")
    parser.add_argument("--target", default=None, help="chosen by the recipe if omitted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--erasers", type=Path, help="folder of erasers")
    parser.add_argument(
        "--beside", nargs="+", default=[], help="concepts whose erasers are loaded too"
    )
    parser.add_argument("--out", type=Path, default=Path("build/removing.jsonl"))
    parser.add_argument("--plot", type=Path, help="only draw what the file holds, here")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    changes = parser.add_argument_group("changes of surgical-remove")
    changes.add_argument("--adversary", choices=ADVERSARIES, help="learnt words by default")
    changes.add_argument("--mixed", type=int, choices=(0, 1), help="words between those found")
    changes.add_argument("--rounds", type=int, help="0 for no adversary")
    changes.add_argument("--updates", type=int, help="of a word in a round")
    changes.add_argument("--defence", type=int, help="steps of a round")
    changes.add_argument("--latents", type=int, help="per update of a word")
    changes.add_argument("--batch", type=int, help="latents per view and step")
    changes.add_argument("--speed", type=float, help="learning rate of a word")
    changes.add_argument("--spread", type=float, help="of a word's beginning")
    changes.add_argument("--enough", type=float, help="loss of a word that is not found")
    changes.add_argument("--memory", type=int)
    changes.add_argument("--parts", choices=TRAINED)
    changes.add_argument("--rank", type=int)
    changes.add_argument("--pool", type=int)
    changes.add_argument("--keep-weight", type=float, help="weight of the pool")
    changes.add_argument("--hard", type=float, help="share of kept latents drawn by their errors")
    changes.add_argument("--weight", type=float, help="of the words' term")
    changes.add_argument("--eta", type=float, help="of the words' term: how far from the concept")
    changes.add_argument("--null", type=float, help="weight of the empty prompt")
    changes.add_argument("--learning-rate", type=float)
    changes.add_argument("--noised", type=int, help="noised pictures per prompt")
    changes.add_argument("--trajectories", type=int, help="prompts of the concept")
    asked = parser.parse_args()
    given = [a.dest for a in changes._group_actions if getattr(asked, a.dest) is not None]
    asked.changes = {name: getattr(asked, name) for name in given}
    asked.recipes = asked.recipes or ["changed" if given else "surgical-remove"]
    return asked


def main() -> None:
    asked = parsed()
    if asked.table:
        print(table(read_lines(asked.out)))
        return
    if asked.plot:
        plot(read_lines(asked.out), asked.plot)
        return
    judge, rows = load_judge(), {**RECIPES, **EDITS}
    for name, method in ((name, method) for name in asked.concepts for method in asked.recipes):
        pipe, started = load_pipeline(), time.perf_counter()
        pipe.set_progress_bar_config(disable=True)
        line = {"recipe": method, "concept": name, "seed": asked.seed, "changes": asked.changes}
        line["given_target"] = asked.target
        if method != "none":
            recipe = recipe_of(asked) if method == "changed" else rows[method]
            with counted(pipe.unet) as cost:
                eraser = made(pipe, name, method, recipe, asked)
                line["evaluations"] = cost()
            beside = [made(pipe, other, method, recipe, asked) for other in asked.beside]
            pipe.load_erasure([eraser, *beside])
            line["beside"] = asked.beside
            line["seconds"] = round(time.perf_counter() - started, 1)
            line["target"] = eraser.config.concepts[0].target
        line |= measured(pipe, judge, name, asked)
        append_lines(asked.out, line)
        print(line, flush=True)


if __name__ == "__main__":
    main()
