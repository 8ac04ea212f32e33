"""The table of a sweep: a row for each result, counted from its file, in the order of the plan."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers_erase.evaluation.evidence import Evidence
from diffusers_erase.evaluation.metrics import Rate, pooled
from diffusers_erase.evaluation.page import table
from diffusers_erase.evaluation.summary import MEASURES, Summary
from diffusers_erase.making.sweep import SweptEraser
from diffusers_erase.storage.atomic import whole_file


TABLE, MARKDOWN = "table.csv", "table.md"

NAMES = ("concept", "recipe", "seed", "suite")
POOLED = (*MEASURES, "others")
RATES = (*POOLED, "attack")
DRIFTS = ("null", "keep", "target", "cos")


def write_table(plan: Sequence[SweptEraser], files: Sequence[Path], folder: Path) -> str:
    """Write `table.csv` and `table.md`, and return the latter.

    Equal results give equal bytes, whoever made them and when.

    Args:
        plan: the erasers.
        files: their results, one for each suite of the first eraser, of the second, ...
        folder: of the sweep.
    """
    asked = [(eraser, suite) for eraser in plan for suite in eraser.suites]
    rows = []
    for (eraser, suite), path in zip(asked, files, strict=True):
        names = (eraser.concept, eraser.recipe, eraser.request.seed, suite.label)
        found = _measured(Evidence.read(path))
        rows.append({**dict(zip(NAMES, names, strict=True)), **found, "file": path.name})
    text = _markdown(rows)
    for name, content in ((TABLE, _csv(rows)), (MARKDOWN, text)):
        with whole_file(folder / name) as draft:
            draft.write_text(content, encoding="utf-8", newline="\n")
    return text


def _measured(evidence: Evidence) -> dict[str, Any]:
    """The target, (base, erased) for each of `RATES`, drift, harmonic mean and verdict."""
    summary, attacked = evidence.summary, [r for side, r in evidence.attacks if side == "erased"]
    strongest = max(attacked, key=lambda result: result.post.value, default=None)
    control = evidence.attack_result(strongest.attack, "base") if strongest else None
    erased = [each for e in evidence.settings["erasers"].values() for each in e["concepts"]]
    return {
        "target": ", ".join(str(each["target"] or "") for each in erased),
        **{name: (summary.rate(name, "base"), summary.rate(name)) for name in MEASURES},
        "others": _others(summary),
        "attack": (control and control.post, strongest and strongest.post),
        "strongest attack": strongest.attack if strongest else "",
        "harmonic": summary.harmonic,
        "drift": summary.drift or {},
        "verdict": summary.verdict,
    }


def _others(summary: Summary) -> tuple[Rate | None, Rate | None]:
    """Rates of other concepts, which no measure of EraseBench counts."""
    rows = [row for row in summary.rows if row.relation == "other" and row.measurable]
    return pooled([row.base for row in rows]), pooled([row.erased for row in rows])


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Shares 0 .. 1 with Wilson's 95 % intervals; empty where something was not measured."""
    text = io.StringIO()
    parts = [f"{name}{part}" for name in RATES for part in ("", "_low", "_high", "_n", "_base")]
    drifts = [f"drift_{name}" for name in DRIFTS]
    columns = (*NAMES, "target", *parts, "strongest_attack", "harmonic", *drifts, "verdict", "file")
    out = csv.writer(text, lineterminator="\n")
    out.writerow(columns)
    for row in rows:
        numbers = [number for name in RATES for number in _numbers(*row[name])]
        drift = [_short(row["drift"].get(name), 6) for name in DRIFTS]
        attack, harmonic = row["strongest attack"], _short(row["harmonic"])
        names = [row[name] for name in (*NAMES, "target")]
        out.writerow((*names, *numbers, attack, harmonic, *drift, row["verdict"], row["file"]))
    return text.getvalue()


def _numbers(base: Rate | None, erased: Rate | None) -> tuple[object, ...]:
    before = "" if base is None else _short(base.value)
    if erased is None:
        return "", "", "", "", before
    return (*map(_short, (erased.value, *erased.interval)), erased.n, before)


def _short(number: float | None, digits: int = 4) -> str:
    return "" if number is None else str(round(number, digits))


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each result, then one for each recipe and suite with all pictures together."""
    unmeasured = "not measured"
    single = [
        (
            *(row[name] for name in NAMES),
            row["target"] or "without it",
            *(row[name][1] or unmeasured for name in RATES),
            unmeasured if row["harmonic"] is None else f"{100 * row['harmonic']:.1f} %",
            row["verdict"],
        )
        for row in rows
    ]
    together, recipes = [], list(dict.fromkeys(row["recipe"] for row in rows))
    for suite in dict.fromkeys(row["suite"] for row in rows):
        for side, label in enumerate(("the base model", *recipes)):
            recipe = label if side else recipes[0]
            own = [row for row in rows if (row["suite"], row["recipe"]) == (suite, recipe)]
            each = [[row[name][min(side, 1)] for row in own] for name in POOLED]
            rates = [pooled([rate for rate in found if rate]) or unmeasured for found in each]
            together.append((suite, label, *rates))
    return (
        table(
            (*NAMES, "target", *(f"{name}:" for name in RATES), "harmonic mean:", "verdict"), single
        )
        + "\nAll concepts and seeds together:\n\n"
        + table(("suite", "recipe", *(f"{name}:" for name in POOLED)), together)
    )
