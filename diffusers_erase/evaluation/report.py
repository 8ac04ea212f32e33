"""The report of an evaluation: tables, sheets of pictures, and a page that opens offline."""

import json
from collections.abc import Mapping
from pathlib import Path

from diffusers.utils import make_image_grid
from PIL import Image

from diffusers_erase.eraser.card import as_text
from diffusers_erase.evaluation.attack import AttackResult
from diffusers_erase.evaluation.evidence import Evidence
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.page import page, table
from diffusers_erase.evaluation.plots import bars, can_plot
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.suites import RELATIONS, Suite
from diffusers_erase.evaluation.summary import (
    GONE_BELOW,
    KEPT_ABOVE,
    MEASURES,
    GroupResult,
    rate_to_dict,
)
from diffusers_erase.storage.atomic import slug, whole_folder


RESULTS, SUMMARY, TABLE, PAGE = "results.jsonl", "summary.json", "table.md", "index.html"
SHEETS, BARS = "pictures", "bars.png"
KNOWN = (SUMMARY, TABLE, PAGE, SHEETS, BARS)
"""Names in a report's folder, besides `results.jsonl`, by which it is recognised."""

NOT_MEASURED = "not measured"


def write_report(
    evidence: Evidence, folder: Path, sheets: Mapping[str, Image.Image] | None = None
) -> Path:
    """Write `results.jsonl`, `summary.json`, `table.md`, pictures and `index.html`, all or nothing.

    A former report in the folder is replaced. `sheets` are group -> pictures.
    """
    with whole_folder(folder) as draft:
        (draft / RESULTS).write_text("".join(f"{x}\n" for x in evidence.lines()), "utf-8")
        summary = {**evidence.summary.to_dict(), "attacks": _attacks_to_dict(evidence)}
        (draft / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        (draft / TABLE).write_text(markdown(evidence), "utf-8")
        pictures = []
        if can_plot():
            bars(evidence.summary, draft / BARS)
            pictures.append(("base and erased, with 95 % intervals", draft / BARS))
        for i, (group, picture) in enumerate((sheets or {}).items(), 1):
            path = draft / SHEETS / f"{i}-{slug(group)}.png"
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
            pictures.append((f"{group}: base above, erased below", path))
        (draft / PAGE).write_text(page(_title(evidence), markdown(evidence), pictures), "utf-8")
    return folder


def sheets_of(runner: Runner, suite: Suite, seed: int = 0) -> dict[str, Image.Image]:
    """Group -> the pictures of a finished run that its runner stored, base above, erased below."""
    cases = suite.cases(seed)
    base, erased = (runner.pictures(cases, side) for side in ("base", "erased"))
    sheets = {}
    for group in suite.groups:
        above, below = (
            [p for case, p in side if case.group == group.name] for side in (base, erased)
        )
        if above and len(above) == len(below):
            sheets[group.name] = make_image_grid([*above, *below], 2, len(above))
    return sheets


def markdown(evidence: Evidence) -> str:
    """Tables of groups, measures, drift and attacks; what was not measured is named."""
    summary, drift = evidence.summary, evidence.drift or {}
    harmonic = NOT_MEASURED if summary.harmonic is None else f"{100 * summary.harmonic:.1f} %"
    gone, kept = f"target below {100 * GONE_BELOW:.0f} %", f"above {100 * KEPT_ABOVE:.0f} % of base"
    groups = ("group", "relation", "base:", "erased:", "difference (95 %):", "n:", "invalid:")
    measures = [
        *((measure, _rate(summary.rate(measure))) for measure in MEASURES),
        ("harmonic mean", harmonic),
        *(
            (f"drift, {name}", f"{drift[name]:.2e}" if name in drift else NOT_MEASURED)
            for name in ("null", "keep", "target", "cos")
        ),
        ("verdict", f"{summary.verdict} ({gone}, near {kept}, at 95 %)"),
    ]
    parts = [
        f"# {as_text(_title(evidence))}\n",
        _settings(evidence.settings),
        table(groups, map(_group, summary.rows)),
        table(("", ""), measures),
        _attacks(evidence),
        _curves(evidence),
        "".join(f"- Not as expected: {_failure(row)}.\n" for row in summary.failures),
    ]
    return "\n".join(part for part in parts if part)


def _title(evidence: Evidence) -> str:
    return f"{', '.join(evidence.concepts)}: {evidence.suite}"


def _settings(settings: Mapping[str, object]) -> str:
    shown = ("model", "erasers", "detector", "sampling", "seed")
    parts = (f"{name} {as_text(_plain(settings[name]))}" for name in shown if settings.get(name))
    return "; ".join(parts) + ".\n"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v not in (None, ""))
    if isinstance(value, list | tuple):
        return " and ".join(map(_plain, value))
    return str(value)


def _group(row: GroupResult) -> tuple[object, ...]:
    low, high = row.interval
    note = "" if row.measurable else " (not measurable: the base shows it too rarely)"
    return (
        row.name,
        RELATIONS[row.relation].description + note,
        f"{100 * row.base.value:.1f} %",
        row.erased,
        f"{100 * row.difference:+.1f} % ({100 * low:+.0f} .. {100 * high:+.0f})",
        row.erased.n,
        f"{100 * row.invalid.value:.1f} %",
    )


def _failure(row: GroupResult) -> str:
    expected = RELATIONS[row.relation].expected
    what = "is still drawn" if expected == "gone" else "is drawn less often"
    return f"{as_text(row.name)} {what}: {100 * row.base.value:.0f} % before, {row.erased} after"


def _rate(rate: Rate | None) -> str:
    return NOT_MEASURED if rate is None else str(rate)


def _attacks(evidence: Evidence) -> str:
    """Results on the erased model beside those of the same attacks on the base model."""
    if not evidence.attacks:
        return f"Attacks: {NOT_MEASURED}.\n"
    rows = []
    for side, result in evidence.attacks:
        if side == "erased":
            control = evidence.attack_result(result.attack, "base")
            rows.append(
                (
                    result.attack,
                    result.access,
                    f"{100 * result.pre.value:.0f} %",
                    result.post,
                    _own_pictures(result),
                    NOT_MEASURED if control is None else _own_pictures(control),
                    f"{result.evaluations:,}",
                )
            )
    columns = ("attack", "access", "without it:", "with it:", "its own pictures:")
    return table((*columns, "the same, erasers off:", "UNet evaluations:"), rows)


def _curves(evidence: Evidence) -> str:
    """Share of prompts that show the concept, for each setting of attacks with several."""
    rows = []
    for side, result in evidence.attacks:
        if side == "erased" and len(result.curve) > 1:
            control = evidence.attack_result(result.attack, "base")
            rows.append(
                (
                    result.attack,
                    _curve(result),
                    NOT_MEASURED if control is None else _curve(control),
                    result.reached() or "none of them",
                )
            )
    columns = ("attack", "prompts that show it, by setting", "the same, erasers off")
    return table((*columns, "half of them from"), rows) if rows else ""


def _curve(result: AttackResult) -> str:
    return "; ".join(f"{key}: {100 * share:.0f} %" for key, share in result.curve.items())


def _own_pictures(result: AttackResult) -> str:
    """The rate of the pictures that the attack drew; hits without it do not prove that it works."""
    return str(result.per_image) if result.per_image.n else "none drawn: shown without it"


def _attacks_to_dict(evidence: Evidence) -> dict[str, object]:
    return {
        f"{result.attack}, {side}": {
            "access": result.access,
            "evaluations": result.evaluations,
            "pre": rate_to_dict(result.pre),
            "post": rate_to_dict(result.post),
            "per_image": rate_to_dict(result.per_image),
            "curve": result.curve,
        }
        for side, result in evidence.attacks
    }
