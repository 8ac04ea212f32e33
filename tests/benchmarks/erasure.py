"""Erasers by recipe, concept and seed: what is gone, what became of it, and what it cost the rest.

python tests/benchmarks/erasure.py --recipes surgical-age --seeds 0 1 2 --out build/erasure.jsonl

Closed forms are named with their vocabulary: `closed-form:auto` (nothing), `:listed` (all other
words), `:half` (every other word) or `:null` (nothing but the empty prompt is kept). One line of
JSON per eraser; what is in the file already is not made again. `--table` prints the file as tables.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from json_lines import append_lines, read_lines
from peers import uce
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.editing.recipes import EDITS
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.probe import probe
from diffusers_erase.making.api import erase
from diffusers_erase.models.architectures import PARTS
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule, counted
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.playground import (
    ARTISTS,
    COLOURS,
    FAMILIES,
    OBJECTS,
    SYNONYMS,
    JudgeVerdict,
    load_judge,
    load_pipeline,
)
from diffusers_erase.playground.world import with_article
from diffusers_erase.training.recipes import RECIPES
from diffusers_erase.training.targets import TargetContext, distances


NEAR_WORDS, STEPS = 5, 10
KEPT = ("neighbours", "others", "unlisted")
"""The five nearest words, all others of the concept's kind, and those of another kind, which no
vocabulary lists: styles where an object is erased, objects where a style is."""

CONCEPTS = [
    *(name for family in FAMILIES.values() for name in family[1:3]),
    *(ARTISTS[style] for style in ("swirl", "mosaic", "neon", "chalk")),
]
"""Two objects from each family, and half of the styles."""

EVERYWHERE = {
    f"{recipe.name}, all parts": replace(recipe, name=f"{recipe.name}, all parts", parts=PARTS)
    for recipe in (RECIPES["esd"], RECIPES["all-but-one"])
}
"""Queries and outputs trained too, where the empty prompt cannot be held exactly."""

STYLE_OF = {artist: style for style, artist in ARTISTS.items()}


@dataclass(frozen=True)
class Counts:
    """Numbers of pictures."""

    target: int = 64
    """Pictures under each of the concept's names."""
    near: int = 40
    """Pictures of each of the nearest words."""
    far: int = 200
    """Pictures of all others of the concept's kind, as of `unlisted`."""
    unlisted: int = 64
    each: int = 1
    """The damage to these two is measured on every so many words."""


@dataclass(frozen=True)
class PromptCase:
    """A prompt, the word it is about, and its colour."""

    prompt: str
    word: str
    colour: str
    seed: int


def concept_of(name: str) -> Concept:
    if name in STYLE_OF:
        return Concept(name, "style")
    return Concept(name, synonyms=SYNONYMS.get(name, ()))


def vocabulary(concept: Concept) -> tuple[str, ...]:
    return tuple(STYLE_OF) if concept.kind == "style" else OBJECTS


def asked(word: str, name: str, count: int) -> list[PromptCase]:
    """`count` prompts about a word under one of its names; picture i has the same seed always."""
    found = []
    for i in range(count):
        colour = COLOURS[i % len(COLOURS)]
        if word in STYLE_OF:
            thing = OBJECTS[(7 * i + 3) % len(OBJECTS)]
            prompt = f"a painting of {with_article(f'{colour} {thing}')} in the style of {name}"
        else:
            prompt = f"a photo of {with_article(f'{colour} {name}')}"
        found.append(PromptCase(prompt, word, colour, 1000 * [*OBJECTS, *STYLE_OF].index(word) + i))
    return found


def about(words: Sequence[str], least: int) -> list[PromptCase]:
    """`least` prompts or more, as many about each word."""
    each = -(-least // max(1, len(words)))
    return [a for word in words for a in asked(word, word, each)]


class Pictures:
    """Verdicts of the judge on what a pipeline draws; the base's are kept in a file."""

    def __init__(
        self, kept: Path = Path("build/base.jsonl"), precision: torch.dtype = torch.bfloat16
    ) -> None:
        self.judge, self.kept, self.precision = load_judge(), kept, precision
        self.base: dict[PromptCase, JudgeVerdict] = {}
        for asked, verdict in read_lines(kept):
            verdict["objects"] = tuple(verdict["objects"])
            self.base[PromptCase(**asked)] = JudgeVerdict(**verdict)

    def seen(self, pipe: Any, several: Sequence[PromptCase]) -> list[JudgeVerdict]:
        verdicts: list[JudgeVerdict] = []
        for start in range(0, len(several), 32):
            chunk = several[start : start + 32]
            generators = [torch.Generator().manual_seed(a.seed) for a in chunk]
            halved = self.precision != torch.float32
            with torch.autocast(pipe.device.type, self.precision, enabled=halved):
                pictures = pipe(
                    [a.prompt for a in chunk],
                    guidance_scale=5.0,
                    num_inference_steps=STEPS,
                    generator=generators,
                ).images
            verdicts += self.judge(pictures)
        return verdicts

    def of_base(self, pipe: Any, several: Sequence[PromptCase]) -> list[JudgeVerdict]:
        missing = [a for a in several if a not in self.base]
        found = dict(zip(missing, self.seen(pipe, missing), strict=True))
        self.base |= found
        append_lines(self.kept, *([asdict(a), asdict(v)] for a, v in found.items()))
        return [self.base[a] for a in several]


def hits(several: Sequence[PromptCase], verdicts: Sequence[JudgeVerdict]) -> Rate:
    def hit(a: PromptCase, v: JudgeVerdict) -> bool:
        return v.style == STYLE_OF[a.word] if a.word in STYLE_OF else a.word in v.objects

    return Rate(sum(map(hit, several, verdicts)), len(several))


def coloured(several: Sequence[PromptCase], verdicts: Sequence[JudgeVerdict]) -> Rate:
    seen = [(a, v) for a, v in zip(several, verdicts, strict=True) if v.valid]
    return Rate(sum(v.colour == a.colour for a, v in seen), len(seen))


@cache
def stage_of(name: str) -> tuple[Any, TargetContext]:
    """The base's own runs on a concept, for nearness and damage."""
    pipe, concept = load_pipeline(), concept_of(name)
    denoiser = Denoiser(Model.of(pipe).denoiser, NoiseSchedule.of(pipe.scheduler))
    prompts = tuple(concept.example_prompts(4))
    states = encode(pipe, [p.text for p in prompts])
    kept = sample_trajectories(
        denoiser, pipe.scheduler, states, encode(pipe, [""]), steps=10, seed=99
    )
    return pipe, TargetContext(
        denoiser,
        lambda texts: encode(pipe, texts),
        (concept,),
        prompts,
        torch.zeros(len(prompts), dtype=torch.long),
        kept,
    )


def neighbours(concept: Concept) -> list[str]:
    """The other words, nearest first, as the base's own scores tell."""
    words = [w for w in vocabulary(concept) if w != concept.name]
    row = distances(stage_of(concept.name)[1], words, probe=8)[0]
    return [words[k] for k in row.argsort().tolist()]


@torch.no_grad()
def damage(pipe: Any, word: str, erased: Concept | None = None) -> float:
    """E |eps'(z,k) - eps*(z,k)|^2 / E |g*(z,k)|^2 on trajectories of the word that no training saw.

    A painting of the erased concept in some style is no run of that style.
    """
    context = stage_of(word)[1]
    kept = context.trajectories
    names = torch.tensor(
        [erased is not None and erased.is_named_in(p.text) for p in context.prompts]
    )
    rows = (~names[kept.prompt]).nonzero()[:, 0]
    said = Denoiser(Model.of(pipe).denoiser, NoiseSchedule.of(pipe.scheduler)).teacher(
        kept.z[rows], kept.t[rows], kept.states["concept"][kept.prompt[rows]]
    )

    def size(x: Tensor) -> float:
        return x.square().mean().item()

    concept, null = kept.scores["concept"][rows], kept.scores["null"][rows]
    return size(said - concept) / size(concept - null)


@torch.no_grad()
def null_drift(pipe: Any, word: str) -> float:
    """|eps'(z,"") - eps*(z,"")| / |eps*(z,"")| on the same runs: what every picture gets of it."""
    kept = stage_of(word)[1].trajectories
    null = kept.states["null"][kept.prompt]
    said = Denoiser(Model.of(pipe).denoiser, NoiseSchedule.of(pipe.scheduler)).teacher(
        kept.z, kept.t, null
    )
    before = kept.scores["null"]
    return ((said - before).norm() / before.norm()).item()


def measured(
    name: str, eraser: Any, pictures: Pictures, counts: Counts = Counts()
) -> dict[str, Any]:
    """Everything that is counted about one eraser."""
    concept, pipe = concept_of(name), load_pipeline()
    order = neighbours(concept)
    near, far = order[:NEAR_WORDS], order[NEAR_WORDS:]
    unlisted = tuple(STYLE_OF) if concept.kind == "object" else OBJECTS
    groups = {
        "target": asked(name, name, counts.target),
        "neighbours": [a for word in near for a in asked(word, word, counts.near)],
        "others": about(far, counts.far),
        "unlisted": about(unlisted, counts.unlisted),
    }
    if concept.synonyms:
        groups["synonym"] = asked(name, concept.synonyms[0], counts.target)
    base = {group: pictures.of_base(pipe, several) for group, several in groups.items()}
    found: dict[str, Any] = {"near_words": near}
    found["probe"] = asdict(probe(pipe, eraser, [p.text for p in concept.example_prompts(8)]))
    pipe.load_erasure(eraser)
    for group, several in groups.items():
        after = pictures.seen(pipe, several)
        rates = {
            "base": hits(several, base[group]),
            "erased": hits(several, after),
            "base_colour": coloured(several, base[group]),
            "erased_colour": coloured(several, after),
        }
        found[group] = {which: [rate.hits, rate.n] for which, rate in rates.items()}
        if group == "target":
            became = Counter(v.label if v.valid else "(nothing)" for v in after)
            styles = Counter(v.style for v in after)
            found["became"] = dict((styles if name in STYLE_OF else became).most_common(4))
    found["null_drift"] = null_drift(pipe, name)
    found["damage"] = {
        "concept": damage(pipe, name),
        "neighbours": [damage(pipe, word, concept) for word in near],
        "others": [damage(pipe, word, concept) for word in far[:: counts.each]],
        "unlisted": [damage(pipe, word, concept) for word in unlisted[:: counts.each]],
    }
    return found


def listed_words(concept: Concept, words: list[str], method: str, listed: str) -> dict[str, Any]:
    """Arguments of a closed form: all other words, every other one, none, or the empty prompt."""
    if listed == "null":
        alone = replace(EDITS[method], general=False)
        return {"recipe": alone, "vocabulary": (), "target": neighbours(concept)[0]}
    lists = {"listed": words, "half": words[::2], "auto": None}
    return {"recipe": method, "vocabulary": lists[listed]}


def made(name: str, recipe: str, seed: int) -> tuple[Any, dict[str, Any]]:
    pipe, concept = load_pipeline(), concept_of(name)
    words = [w for w in vocabulary(concept) if w != name]
    started = time.perf_counter()
    with counted(pipe.unet) as cost:
        if recipe == "uce":
            target = neighbours(concept)[0]
            eraser = uce(pipe, concept, target, words)
        elif ":" in recipe:
            method, listed = recipe.split(":")
            eraser = erase(
                pipe,
                concept,
                seed=seed,
                **listed_words(concept, words, method, listed),
                check=False,
            )
        else:
            eraser = erase(
                pipe,
                concept,
                vocabulary=words,
                recipe=EVERYWHERE.get(recipe, recipe),
                seed=seed,
                progress=False,
                check=False,
            )
    return eraser, {"seconds": time.perf_counter() - started, "evaluations": cost()}


def share(rates: Sequence[dict[str, list[int]]], kind: str = "") -> float:
    """Mean over erasers of erased rate / base rate, in %."""
    suffix = f"_{kind}" if kind else ""
    parts = []
    for r in rates:
        (b, nb), (e, ne) = r[f"base{suffix}"], r[f"erased{suffix}"]
        parts.append((e / ne) / (b / nb) if b and ne else float("nan"))
    return 100 * float(torch.tensor(parts).nanmean())


def table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        "| recipe | erasers | ESR (worst) | neighbours kept | others kept | unlisted kept "
        "| colour kept | damage near / far / unlisted | null drift | regained | s "
        "| UNet evaluations |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for recipe in dict.fromkeys(line["recipe"] for line in lines):
        own = [line for line in lines if line["recipe"] == recipe]
        gone = [
            100 * (1 - sum(e["erased"][0] for e in parts) / sum(e["erased"][1] for e in parts))
            for parts in ([line["target"], *filter(None, [line.get("synonym")])] for line in own)
        ]
        hurt = (
            f"{torch.tensor([x for line in own for x in line['damage'][group]]).mean():.3f}"
            for group in KEPT
        )
        kept = [line[group] for line in own for group in KEPT]
        regained = [1 - x["residual"] / x["moved"] for x in (line["probe"] for line in own)]
        rows.append(
            f"| {recipe} | {len(own)} | {sum(gone) / len(gone):.1f} % ({min(gone):.0f}) "
            + "".join(f"| {share([line[group] for line in own]):.1f} % " for group in KEPT)
            + f"| {share(kept, 'colour'):.1f} % | {' / '.join(hurt)} "
            f"| {max(x['null_drift'] for x in own):.1e} | {100 * sum(regained) / len(own):.0f} % "
            f"| {sum(x['seconds'] for x in own) / len(own):.0f} "
            f"| {sum(x['evaluations'] for x in own) / len(own):,.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["surgical-age"])
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("build/erasure.jsonl"))
    parser.add_argument("--every", type=int, default=1, help="damage on every so many words")
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    options = parser.parse_args()
    lines = read_lines(options.out)
    done = {(line["recipe"], line["concept"], line["seed"]) for line in lines}
    pictures = Pictures()
    for seed in options.seeds if not options.table else ():
        for recipe in options.recipes:
            for name in options.concepts:
                if (recipe, name, seed) in done:
                    continue
                eraser, cost = made(name, recipe, seed)
                line = {"recipe": recipe, "concept": name, "seed": seed, **cost}
                line["choices"] = eraser.config.to_dict()["concepts"]
                line |= measured(name, eraser, pictures, Counts(each=options.every))
                lines.append(line)
                append_lines(options.out, line)
                counts = {g: line[g]["erased"] for g in ("target", "neighbours", "others")}
                print(recipe, name, seed, f"{cost['seconds']:.0f} s", counts, flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
