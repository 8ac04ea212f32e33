"""The demo: erase an object and a style on the playground, load them anew, measure, report."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.evidence import Evidence, evaluate
from diffusers_erase.evaluation.pictures import sheet
from diffusers_erase.evaluation.report import markdown, write_report
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling, fast_precision
from diffusers_erase.evaluation.suites import PromptCase, Suite
from diffusers_erase.making.api import erase
from diffusers_erase.playground import ARTISTS, OBJECTS, SYNONYMS, load_judge, load_pipeline
from diffusers_erase.playground.protocols import protocol
from diffusers_erase.runtime.plugin import load_erasure
from diffusers_erase.storage.atomic import check_folder, slug, whole_folder
from diffusers_erase.training.targets import Fixed, Target


ERASURES: tuple[tuple[Concept, Target | None, tuple[str, ...]], ...] = (
    (Concept("car", synonyms=SYNONYMS["car"]), None, OBJECTS),
    (Concept(ARTISTS["swirl"], kind="style"), Fixed(None), tuple(ARTISTS.values())),
)
"""Concept, its target (None: the recipe chooses one) and vocabulary."""

PICTURES = 40
"""Pictures of the erased concept; the card suite draws as many or more of everything else."""

SAMPLING = Sampling(steps=10, precision=fast_precision(), batch=32)
"""Ten DDIM steps give the same counts as twenty-five (docs/playground.md)."""

REPORT = "erasure_demo.json"


def run_demo(folder: Path, *, overwrite: bool, seed: int, say: Callable[[str], None]) -> bool:
    """Erase each concept, measure it by the card suite, and write everything; True if all passed.

    `folder` gets, for each concept, the eraser, a sheet of pictures, the report of the evaluation,
    and one summary of all in `erasure_demo.json`. It appears when everything is done, or not at
    all.

    Raises:
        ErasureError: the folder exists without `overwrite`, or holds something else than a demo.
    """
    names = [slug(concept.name) for concept, *_ in ERASURES]
    known = [name + ending for name in names for ending in ("", ".png", "-measured")]
    check_folder(folder, overwrite=overwrite, marker=REPORT, known=known)
    summaries = {}
    with whole_folder(folder) as draft:
        for concept, target, vocabulary in ERASURES:
            say(f"\nErasing '{concept.name}'.")
            started = time.monotonic()
            eraser = erase(
                load_pipeline(), concept, target=target, vocabulary=vocabulary, seed=seed
            )
            answer = eraser.config.concepts[0].target
            say(f"Its target is {repr(answer) if answer else 'the same prompt without it'}.")
            path = eraser.save_pretrained(draft / slug(concept.name))
            made = time.monotonic()
            evidence, drawn = _measured(concept, path, seed)
            measured = time.monotonic()
            write_report(evidence, draft / f"{path.name}-measured")
            _sheet(drawn).save(draft / f"{path.name}.png")
            images = {
                case.prompt: picture for case, picture in drawn["erased"] if case.seed == seed
            }
            eraser.save_pretrained(path, overwrite=True, results=evidence.card(), images=images)
            say(markdown(evidence))
            say(_sentence(concept, evidence))
            summaries[concept.name] = {
                "target": answer,
                "passed": evidence.summary.verdict == "pass",
                "seconds": {
                    "erasing": round(made - started, 1),
                    "measuring": round(measured - made, 1),
                },
                **evidence.summary.to_dict(),
            }
        (draft / REPORT).write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    say(f"\nErasers, pictures (base above, erased below) and reports are in {folder}/.")
    return all(summary["passed"] for summary in summaries.values())


Drawn = dict[str, list[tuple[PromptCase, Image.Image]]]
"""Side -> some of the pictures that were drawn on it."""


def _measured(concept: Concept, path: Path, seed: int) -> tuple[Evidence, Drawn]:
    """The evaluation of a saved eraser on a fresh pipeline."""
    pipe = load_pipeline()
    load_erasure(pipe, path)
    suite = Suite.of(protocol("card", concept.name, pictures=PICTURES))
    with TemporaryDirectory() as work:
        runner = Runner(PipelineSampler(pipe, load_judge(), SAMPLING), Path(work), shown=12)
        evidence = evaluate(runner, suite, seed=seed)
        cases = suite.cases(seed)
        return evidence, {side: runner.pictures(cases, side) for side in ("base", "erased")}


def _sentence(concept: Concept, evidence: Evidence) -> str:
    target = next(row for row in evidence.summary.rows if row.relation == "target")
    verdict = evidence.summary.verdict
    return (
        f"{'Erased' if verdict == 'pass' else f'NOT ERASED WELL (verdict: {verdict})'}: "
        f"asked for '{concept.name}' {target.erased.n} times, the model drew it "
        f"{target.erased.hits} times (before: {target.base.hits})."
    )


def _sheet(drawn: Drawn) -> Image.Image:
    """Two rows for each group of prompts: base above, and the same erased below."""
    rows: list[tuple[str, Sequence[Image.Image]]] = []
    for group in dict.fromkeys(case.group for case, _ in drawn["base"]):
        for side, title in (("base", f"{group}: base above, erased below"), ("erased", "")):
            rows.append((title, [p for case, p in drawn[side] if case.group == group]))
    return sheet(rows)
