"""The whole story on the playground: erase, save, load into a fresh pipeline, look, count."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image

from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.metrics import Rate, compared
from diffusers_erase.evaluation.pictures import draw, sheet
from diffusers_erase.making.api import erase
from diffusers_erase.playground import (
    ARTISTS,
    COLOURS,
    FAMILIES,
    FAMILY_OF,
    OBJECTS,
    SYNONYMS,
    JudgeVerdict,
    Scene,
    Thing,
    load_judge,
    load_pipeline,
    prompt,
)
from diffusers_erase.runtime.plugin import load_erasure
from diffusers_erase.storage.atomic import check_folder, whole_folder
from diffusers_erase.training.targets import Fixed, Target


TARGET_PICTURES = 64
"""Pictures of the erased concept."""
NEAR_PICTURES, FAR_PICTURES = 6, 1
"""Pictures of every neighbour, and of every other concept."""
SHEET_COLUMNS = 12
STEPS = 10
"""DDIM steps of the counted pictures: fewer than for looking at, enough for counting."""

DRAWN_AT_MOST, OTHERS_AT_LEAST = 0.05, 0.9
"""The demo fails if the concept is drawn more often, or the others keep less of their rate."""

MEASURABLE = 0.5
"""The base must draw the concept at least this often, else there is nothing to measure."""

REPORT = "erasure_demo.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Group:
    """Prompts that make one line of the table, and what the judge must see in their pictures."""

    name: str
    prompts: list[str]
    wanted: list[str]
    sees: Callable[[JudgeVerdict], Sequence[str]]

    def rate(self, verdicts: Sequence[JudgeVerdict]) -> Rate:
        """How many pictures show what their prompt asked for."""
        hits = sum(w in self.sees(v) for w, v in zip(self.wanted, verdicts, strict=True))
        return Rate(hits, len(verdicts))


@dataclass(frozen=True)
class Case:
    """One erasure of the demo."""

    concept: Concept
    target: Target | None
    """None if the recipe is to choose it."""
    groups: tuple[Group, ...]
    vocabulary: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str
    base: Rate
    erased: Rate


def object_case(name: str) -> Case:
    """Erase an object, answered as the recipe chooses; its neighbours are its family."""
    family = [o for o in FAMILIES[FAMILY_OF[name]] if o != name]
    others = [o for o in OBJECTS if FAMILY_OF[o] != FAMILY_OF[name]]

    def group(title: str, objects: Sequence[str], each: int) -> Group:
        scenes = [Scene((Thing(o, c),)) for o in objects for c in islice(cycle(COLOURS), each)]
        wanted = [scene.things[0].object for scene in scenes]
        return Group(
            title, [prompt(scene) for scene in scenes], wanted, lambda verdict: verdict.objects
        )

    groups = (
        group("target", [name], TARGET_PICTURES),
        group("neighbours", family, NEAR_PICTURES),
        group("others", others, FAR_PICTURES),
    )
    return Case(Concept(name, synonyms=SYNONYMS.get(name, ())), None, groups, OBJECTS)


def style_case(style: str) -> Case:
    """Erase a painter, whose pictures become plain ones.

    The neighbours are the other painters, the others are plain pictures.
    """
    subjects = [o for family in FAMILIES.values() for o in family[:2]]

    def painted(styles: Sequence[str], each: int) -> tuple[list[str], list[str]]:
        things = cycle(Thing(o, c) for o, c in zip(subjects, cycle(COLOURS), strict=False))
        scenes = [Scene((next(things),), s) for s in styles for _ in range(each)]
        return [prompt(scene) for scene in scenes], [scene.style for scene in scenes]

    def seen_style(verdict: JudgeVerdict) -> Sequence[str]:
        return (verdict.style,)

    plain = [Scene((Thing(o, c),)) for o in subjects for c in COLOURS[: 2 * FAR_PICTURES]]
    groups = (
        Group("target", *painted([style], TARGET_PICTURES), seen_style),
        Group(
            "neighbours",
            *painted([s for s in ARTISTS if s != style], NEAR_PICTURES),
            seen_style,
        ),
        Group(
            "others",
            [prompt(s) for s in plain],
            [s.things[0].object for s in plain],
            lambda v: v.objects,
        ),
    )
    painters = tuple(ARTISTS.values())
    return Case(Concept(ARTISTS[style], kind="style"), Fixed(None), groups, painters)


CASES: tuple[Callable[[], Case], ...] = (
    lambda: object_case("car"),
    lambda: style_case("swirl"),
)


def run_demo(folder: Path, *, overwrite: bool, seed: int, say: Say) -> bool:
    """Run every case; write erasers, `<concept>.png` and the report; True if all erased well.

    The folder appears when everything is done, or not at all.

    Raises:
        ErasureError: the folder exists without `overwrite`, or holds something else than a demo.
    """
    cases = [make_case() for make_case in CASES]
    known = [name for case in cases for name in (_slug(case), f"{_slug(case)}.png")]
    check_folder(folder, overwrite=overwrite, marker=REPORT, known=known)
    report, passed = {}, True
    with whole_folder(folder) as draft:
        for case in cases:
            rows, target, seconds = _run_case(case, draft, seed=seed, say=say)
            ok = _passes(rows)
            passed = passed and ok
            say(_table(case, rows))
            say(_words(case, rows, ok))
            report[case.concept.name] = {
                "target": target,
                "passed": ok,
                "seconds": seconds,
                "groups": {row.group: _counts(row) for row in rows},
            }
        (draft / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    say(f"Everything is in {folder}/: an eraser and a picture for each, and {REPORT}.")
    return passed


def _slug(case: Case) -> str:
    return case.concept.name.replace(" ", "-")


def _run_case(
    case: Case, folder: Path, *, seed: int, say: Say
) -> tuple[list[Row], str | None, dict[str, float]]:
    name, started = case.concept.name, time.monotonic()
    say(f"\nErasing '{name}'.")
    eraser = erase(
        load_pipeline(), case.concept, target=case.target, vocabulary=case.vocabulary, seed=seed
    )
    target = eraser.config.concepts[0].target
    say(f"  It is answered as {repr(target) if target else 'the same prompt without it'}.")
    path = eraser.save_pretrained(folder / _slug(case))
    made = time.monotonic()
    pipe = load_pipeline()
    before = [draw(pipe, group.prompts, steps=STEPS, seed=seed) for group in case.groups]
    load_erasure(pipe, path)
    after = [draw(pipe, group.prompts, steps=STEPS, seed=seed) for group in case.groups]
    judge = load_judge()
    rows = [
        Row(group.name, group.rate(judge(old)), group.rate(judge(new)))
        for group, old, new in zip(case.groups, before, after, strict=True)
    ]
    _sheet(case.groups, before, after).save(folder / f"{path.name}.png")
    shown = {g.prompts[0]: drawn[0] for g, drawn in zip(case.groups, after, strict=True)}
    results = {row.group: compared(row.base, row.erased) for row in rows}
    eraser.save_pretrained(path, overwrite=True, results=results, images=shown)
    return (
        rows,
        target,
        {"erasing": round(made - started, 1), "judging": round(time.monotonic() - made, 1)},
    )


def _passes(rows: Sequence[Row]) -> bool:
    target, *rest = rows
    if target.base.value < MEASURABLE:
        return False  # what the base does not draw cannot be seen to be erased
    base = sum((row.base for row in rest), Rate(0, 0))
    erased = sum((row.erased for row in rest), Rate(0, 0))
    return target.erased.value <= DRAWN_AT_MOST and erased.value >= OTHERS_AT_LEAST * base.value


def _counts(row: Row) -> dict[str, Any]:
    return {
        which: {"hits": rate.hits, "n": rate.n, "interval": rate.interval}
        for which, rate in (("base", row.base), ("erased", row.erased))
    }


def _table(case: Case, rows: Sequence[Row]) -> str:
    lines = [f"  {case.concept.name:<12} {'base':>9} {'erased':>9} {'n':>5}   95 % interval"]
    for row in rows:
        low, high = row.erased.interval
        lines.append(
            f"  {row.group:<12} {100 * row.base.value:>7.1f} % {100 * row.erased.value:>7.1f} % "
            f"{row.erased.n:>5}   {100 * low:.0f} .. {100 * high:.0f} %"
        )
    return "\n".join(lines)


def _words(case: Case, rows: Sequence[Row], passed: bool) -> str:
    target, near, far = rows
    verdict = "Erased" if passed else "NOT ERASED WELL"
    return (
        f"  {verdict}: asked for '{case.concept.name}' {target.erased.n} times, the model drew it "
        f"{target.erased.hits} times (before: {target.base.hits}). What is near kept "
        f"{near.erased.hits} of {near.base.hits} hits, the rest {far.erased.hits} of "
        f"{far.base.hits}."
    )


def _sheet(
    groups: Sequence[Group], before: Sequence[list[Image.Image]], after: Sequence[list[Image.Image]]
) -> Image.Image:
    """Per group two rows of the same prompts and seeds: base above, erased below."""
    rows = []
    for group, old, new in zip(groups, before, after, strict=True):
        shown = slice(0, None, max(1, len(old) // SHEET_COLUMNS))
        title = f"{group.name}: base above, erased below (same prompts and seeds)"
        rows += [(title, old[shown][:SHEET_COLUMNS]), ("", new[shown][:SHEET_COLUMNS])]
    return sheet(rows)
