"""What was measured, for people: tables, sheets of pictures, and a page that opens offline."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from diffusers_erase.evaluation.attack import AttackResult
from diffusers_erase.evaluation.evidence import Evidence
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.page import as_html, figure, page
from diffusers_erase.evaluation.pictures import sheet
from diffusers_erase.evaluation.plots import bars, drawable
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.suites import RELATIONS, Suite
from diffusers_erase.evaluation.summary import GONE_BELOW, KEPT_ABOVE, Row
from diffusers_erase.storage.atomic import whole_folder


RESULTS, SUMMARY, TABLE, PAGE = "results.jsonl", "summary.json", "table.md", "index.html"
SHEETS, BARS = "pictures", "bars.png"
KNOWN = (SUMMARY, TABLE, PAGE, SHEETS, BARS)
"""Names in a report's folder, beside `results.jsonl` by which it is known."""

NOT_MEASURED = "not measured"


def write_report(
    evidence: Evidence, folder: Path, sheets: Mapping[str, Image.Image] | None = None
) -> Path:
    """`results.jsonl`, `summary.json`, `table.md`, pictures and `index.html`, all or nothing.

    Args:
        evidence: what was seen.
        folder: where to; it is replaced if it is there.
        sheets: group -> base above, erased below.
    """
    sheets = sheets or {}
    with whole_folder(folder) as draft:
        (draft / RESULTS).write_text("".join(f"{x}\n" for x in evidence.lines()), "utf-8")
        told = {**evidence.summary.plain(), "attacks": _attacks_plain(evidence)}
        (draft / SUMMARY).write_text(json.dumps(told, indent=2) + "\n", "utf-8")
        (draft / TABLE).write_text(markdown(evidence), "utf-8")
        if sheets:
            (draft / SHEETS).mkdir()
        for group, picture in sheets.items():
            picture.save(draft / SHEETS / f"{_slug(group)}.png")
        if drawable():
            bars(evidence.summary, draft / BARS)
        (draft / PAGE).write_text(_page(evidence, draft, sheets), "utf-8")
    return folder


def sheets_of(runner: Runner, suite: Suite, seed: int = 0) -> dict[str, Image.Image]:
    """Group -> the first pictures of base and erased, as the runner kept them."""
    asked = suite.asked(seed)
    found = {side: runner.pictures(asked, side) for side in ("base", "erased")}
    sheets = {}
    for group in suite.groups:
        rows = [
            (side, [picture for a, picture in pictures if a.group == group.name])
            for side, pictures in found.items()
        ]
        if all(pictures for _, pictures in rows):
            sheets[group.name] = sheet(rows)
    return sheets


def markdown(evidence: Evidence) -> str:
    """The tables: groups, aggregates, drift, attacks; what was not measured is named."""
    summary, about = evidence.summary, evidence.about
    lines = [
        f"# {', '.join(evidence.concepts)}: {evidence.suite}",
        "",
        _told(about),
        "",
        "| group | relation | base | erased | difference (95 %) | n | invalid |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *map(_row, summary.rows),
        "",
        "| | |",
        "| --- | --- |",
    ]
    for name in ("efficacy", "generality", "sensitivity"):
        lines.append(f"| {name} | {_rate(summary.rate(name))} |")
    harmonic = NOT_MEASURED if summary.harmonic is None else f"{100 * summary.harmonic:.1f} %"
    lines.append(f"| harmonic mean | {harmonic} |")
    drift = evidence.drift or {}
    for name in ("null", "keep", "target", "cos"):
        lines.append(
            f"| drift, {name} | {f'{drift[name]:.2e}' if name in drift else NOT_MEASURED} |"
        )
    lines += [
        f"| verdict | {summary.verdict} (target below {100 * GONE_BELOW:.0f} %, near above "
        f"{100 * KEPT_ABOVE:.0f} % of base, at 95 %) |",
        "",
        *_attack_lines(evidence),
        "",
        *(f"- Not as it should be: {_failure(row)}." for row in summary.failures),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _page(evidence: Evidence, draft: Path, sheets: Mapping[str, Image.Image]) -> str:
    """Everything in one file: pictures are part of it, and nothing is fetched."""
    summary = evidence.summary
    kind = {"pass": "pass", "fail": "fail"}.get(summary.verdict, "")
    body = [f'<p class="{kind}">{html.escape(summary.verdict)}</p>']
    body.append(as_html(markdown(evidence)))
    if (draft / BARS).is_file():
        body.append(figure(draft / BARS, "base and erased, with 95 % intervals"))
    body += [
        figure(draft / SHEETS / f"{_slug(group)}.png", f"{group}: base above, erased below")
        for group in sheets
    ]
    return page(f"{', '.join(evidence.concepts)}: {evidence.suite}", "\n".join(body))


def _told(about: Mapping[str, object]) -> str:
    kept = ("model", "erasers", "detector", "sampling", "seed")
    return "; ".join(f"{name} {_plain(about[name])}" for name in kept if about.get(name)) + "."


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v not in (None, ""))
    return str(value)


def _row(row: Row) -> str:
    low, high = row.interval
    note = "" if row.judged else " (not measurable: the base is seen too rarely)"
    return (
        f"| {row.name} | {RELATIONS[row.relation].says}{note} | {100 * row.base.value:.1f} % "
        f"| {row.erased} | {100 * row.difference:+.1f} % ({100 * low:+.0f} .. {100 * high:+.0f}) "
        f"| {row.erased.n} | {100 * row.invalid.value:.1f} % |"
    )


def _failure(row: Row) -> str:
    expected = RELATIONS[row.relation].expected
    what = "is still drawn" if expected == "gone" else "is drawn less often"
    return f"{row.name} {what}: {100 * row.base.value:.0f} % before, {row.erased} after"


def _rate(rate: Rate | None) -> str:
    return NOT_MEASURED if rate is None else str(rate)


def _attack_lines(evidence: Evidence) -> Sequence[str]:
    """What came back, beside what the same attack finds on the bare base."""
    if not evidence.recoveries:
        return [f"Attacks: {NOT_MEASURED}."]
    lines = [
        "| attack | access | without it | with it | its own pictures | the same, erasers off "
        "| UNet evaluations |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for side, recovery in evidence.recoveries:
        if side == "erased":
            control = evidence.recovered(recovery.attack, "base")
            before = NOT_MEASURED if control is None else _own(control)
            lines.append(
                f"| {recovery.attack} | {recovery.access} | {100 * recovery.pre.value:.0f} % "
                f"| {recovery.post} | {_own(recovery)} | {before} | {recovery.evaluations:,} |"
            )
    return lines


def _own(recovery: AttackResult) -> str:
    """Of the pictures that the attack drew itself: what is shown without it is no proof of it."""
    return str(recovery.per_image) if recovery.per_image.n else "none drawn: shown without it"


def _attacks_plain(evidence: Evidence) -> dict[str, object]:
    found: dict[str, object] = {}
    for side, recovery in evidence.recoveries:
        rates = {"pre": recovery.pre, "post": recovery.post, "per_image": recovery.per_image}
        found[f"{recovery.attack}, {side}"] = {
            "access": recovery.access,
            "evaluations": recovery.evaluations,
            **{
                name: {"value": round(r.value, 4), "interval": r.interval, "n": r.n}
                for name, r in rates.items()
            },
        }
    return found


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)
