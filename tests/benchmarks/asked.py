"""Does `erase` erase what was asked, and nothing else, or does it say so?

python tests/benchmarks/asked.py --out build/asked.jsonl

Calls as users write them (`asking.py` lists them), without recipe or list unless a cell names one;
the judge counts pictures of the concept and of what must stay, the base's and the eraser's. One
line of JSON per cell; what is in the file already is not made again. `--table` prints the file,
worst cells first; `--calibrate` how often the check of `erase` told what the judge saw; `--cost`
times erasers with and without the check.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any
from warnings import catch_warnings, simplefilter

from asking import Cell, cells
from json_lines import append_lines, read_lines

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.making.api import erase
from diffusers_erase.playground import OBJECTS, JudgeVerdict, load_judge, load_pipeline


LEFT, KEPT, ERASED = 0.05, 0.95, 0.9
"""Most that may be left without a word, least of the base that is kept, and the share that is gone
of an eraser that the check should pass."""

Case = tuple[str, int]
"""A prompt and its seed."""


class Pictures:
    """Verdicts of the judge on what a pipeline draws; the base's are kept in a file."""

    def __init__(self, kept: Path, steps: int) -> None:
        self.judge, self.kept, self.steps = load_judge(), kept, steps
        self.base: dict[Case, JudgeVerdict] = {}
        for prompt, seed, drawn_in, verdict in read_lines(kept):
            if drawn_in == steps:
                verdict = {k: tuple(v) if isinstance(v, list) else v for k, v in verdict.items()}
                self.base[prompt, seed] = JudgeVerdict(**verdict)

    def seen(self, pipe: Any, cases: Sequence[Case]) -> dict[Case, JudgeVerdict]:
        prompts, seeds = [c[0] for c in cases], [c[1] for c in cases]
        pictures = draw(pipe, prompts, steps=self.steps, seed=seeds, batch=24)
        return dict(zip(cases, self.judge(pictures) if cases else (), strict=True))

    def of_base(self, pipe: Any, cases: Sequence[Case]) -> dict[Case, JudgeVerdict]:
        found = self.seen(pipe, [case for case in cases if case not in self.base])
        self.base |= found
        append_lines(self.kept, *([*case, self.steps, asdict(v)] for case, v in found.items()))
        return self.base


def shows(verdict: JudgeVerdict, labels: Sequence[str]) -> bool:
    return any({*label.split("+")} <= {*verdict.labels} for label in labels)


def counted(cell: Cell, eraser: Any, pictures: Pictures, n: int) -> dict[str, Any]:
    """Pictures of each of the cell's asks with its labels; further how many of the eraser's are
    whole, and how many of those that are in both stand on the same background."""
    pipe, asks = load_pipeline(), [*cell.gone, *cell.kept]
    cases = {ask.title: ask.cases(-(-n // 4) if ask.few else n) for ask in asks}
    every = list(dict.fromkeys(case[:2] for own in cases.values() for case in own))
    base = pictures.of_base(pipe, every)
    pipe.load_erasure(eraser)
    after = pictures.seen(pipe, every)
    found: dict[str, Any] = {"gone": {}, "kept": {}}
    for ask in asks:
        own = [(base[text, seed], after[text, seed], own) for text, seed, own in cases[ask.title]]
        both = [b.background == a.background for b, a, _ in own if b.valid and a.valid]
        found["gone" if ask in cell.gone else "kept"][ask.title] = {
            "base": [sum(shows(b, labels) for b, _, labels in own), len(own)],
            "erased": [sum(shows(a, labels) for _, a, labels in own), len(own)],
            "whole": [sum(a.valid for _, a, _ in own), len(own)],
            "background": [sum(both), len(both)],
        }
    return found


def answered(cell: Cell) -> tuple[Any, dict[str, Any]]:
    """The eraser, if there is one, and what the call said."""
    pipe, error, eraser = load_pipeline(), None, None
    started = time.perf_counter()
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        try:
            eraser = erase(pipe, cell.concept, progress=False, **cell.options)
        except Exception as raised:  # the other cells go on, and the table shows it
            error, eraser = raised, getattr(raised, "eraser", None)
    said: dict[str, Any] = {
        "seconds": round(time.perf_counter() - started, 2),
        "error": error and f"{type(error).__name__}: {error}",
        "crashed": error is not None and not isinstance(error, ErasureError),
        "warnings": [str(w.message) for w in caught if issubclass(w.category, UserWarning)],
        "check": None,
    }
    if eraser is not None:
        config = eraser.config.to_dict()
        said["recipe"], said["check"] = config["recipe"], config["results"].get("check")
        said["concepts"] = [
            {k: one[k] for k in ("name", "kind", "target")} for one in config["concepts"]
        ]
    said["announced"] = error is not None or verdict(said) not in ("", "erased")
    return eraser, said


def verdict(line: dict[str, Any]) -> str:
    """The check's; empty without a check."""
    return (line["check"] or {}).get("verdict", "")


def by_itself(line: dict[str, Any]) -> bool:
    """Whether a user is told that a concept of another kind is still drawn as a thing."""
    return bool((line["check"] or {}).get("things"))


def told(line: dict[str, Any]) -> bool:
    """Whether a user is told: where nothing could be checked only a warning tells it."""
    return line["announced"] and (verdict(line) != "not checked" or bool(line["warnings"]))


def measured(cell: Cell, pictures: Pictures, n: int) -> dict[str, Any]:
    """The line of a cell."""
    eraser, said = answered(cell)
    line = {"group": cell.group, "name": cell.name, "says": cell.says, "refused": cell.refused}
    line |= {**said, "gone": {}, "kept": {}}
    if eraser is not None and not cell.refused:
        line |= counted(cell, eraser, pictures, n)
    return line


def share(rate: Sequence[int]) -> float:
    return rate[0] / rate[1] if rate[1] else float("nan")


def left(line: dict[str, Any]) -> float:
    """Share of pictures that still show it, of the ask with most; nan if nothing was drawn."""
    return max((share(ask["erased"]) for ask in line["gone"].values()), default=float("nan"))


def kept(line: dict[str, Any]) -> float:
    """Erased / base, of the ask with least."""
    rates = (ask for ask in line["kept"].values() if ask["base"][0])
    return min((r["erased"][0] / r["base"][0] for r in rates), default=float("nan"))


def gone(line: dict[str, Any]) -> float:
    """1 - erased / base, of the ask with least; nan where the base hardly draws it either."""
    rates = [
        (r["base"][0], r["erased"][0]) for r in line["gone"].values() if share(r["base"]) > 0.25
    ]
    return min((1 - e / b for b, e in rates), default=float("nan"))


def right(line: dict[str, Any]) -> bool:
    """Whether the cell ended as it should: refused where it must be, else gone or announced, with
    the words that must be said, and each concept once."""
    spoken = [line["error"] or ""] if line["refused"] else line["warnings"]
    said = not line["says"] or any(word in text for word in line["says"] for text in spoken)
    if line["refused"]:
        return said and bool(line["error"]) and not line["crashed"]
    names = [concept["name"].lower() for concept in line.get("concepts", ())]
    once = len(names) == len({*names})
    return said and once and not line["crashed"] and (told(line) or left(line) <= LEFT)


def percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.0f} %"


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Groups of cells, the worst first, and the bars."""
    rows = []
    for group in dict.fromkeys(line["group"] for line in lines):
        rows += [f"\n{group}\n", "| call | as it should | targets | check | left | base | kept |"]
        rows += ["| --- | --- | --- | --- | ---: | ---: | ---: |"]
        own = [line for line in lines if line["group"] == group]
        for line in sorted(own, key=lambda x: (right(x), -(left(x) if x["gone"] else 0))):
            says = verdict(line) or "nothing"
            if line["error"]:
                says = f"{'error, ' if line['gone'] else ''}{line['error'][:60]}"
            targets = ", ".join(f"{c['target']} ({c['kind']})" for c in line.get("concepts", ()))
            base = max((share(r["base"]) for r in line["gone"].values()), default=float("nan"))
            rows.append(
                f"| {line['name']} | {'yes' if right(line) else 'NO'} | {targets} | {says} "
                f"| {percent(left(line))} | {percent(base)} | {percent(kept(line))} |"
            )
    return "\n".join([*rows, "", *bars(lines)])


def bars(lines: Sequence[dict[str, Any]]) -> list[str]:
    """What must hold, and whether it does."""

    def bar(text: str, asked: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]]) -> str:
        names = ": " + "; ".join(line["name"] for line in failed) if failed else ""
        return f"- {text}: {len(asked) - len(failed)} of {len(asked)}{names}"

    drawn = [line for line in lines if line["gone"]]
    silent = [x for x in drawn if left(x) > LEFT and not told(x)]
    unsaid = [x for x in lines if (x["says"] or x["refused"]) and not right(x)]
    asked = [x for x in lines if not x["refused"]]
    pairs = [x for x in drawn if x["group"] == "compound"]
    found = [
        bar("at most 5 % left, or announced", drawn, silent),
        bar("at most 5 % left", drawn, [x for x in drawn if left(x) > LEFT]),
        bar("an eraser where one is asked for", asked, [x for x in asked if not x["gone"]]),
        bar("refused or said in words", [x for x in lines if x["says"] or x["refused"]], unsaid),
        bar("no other error than ErasureError", lines, [x for x in lines if x["crashed"]]),
        bar("compounds with at most 5 % left", pairs, [x for x in pairs if left(x) > LEFT]),
        bar("compounds with 95 % of each part", pairs, [x for x in pairs if kept(x) < KEPT]),
    ]
    for title in pairs[0]["kept"] if pairs else ():
        base, after = (sum(x["kept"][title][w][0] for x in pairs) for w in ("base", "erased"))
        found.append(f"- compounds, {title}: {after} of the base's {base}")
    return found


def calibration(lines: Sequence[dict[str, Any]]) -> str:
    """Of erasers with less than 90 % gone the share announced, and of the others' the share too."""
    drawn = [line for line in lines if gone(line) == gone(line)]
    judged = [line for line in drawn if verdict(line) != "not checked"]
    weak = [line for line in judged if gone(line) < ERASED]
    rows = [
        f"{len(drawn)} erasers, {len(drawn) - len(judged)} not checked; of the others "
        f"{len(weak)} with less than {percent(ERASED)} gone"
    ]
    for title, own, wrong in (
        ("found by the check", weak, False),
        ("false alarms", [line for line in judged if line not in weak], True),
    ):
        announced = [line for line in own if line["announced"] or (not wrong and by_itself(line))]
        rows.append(f"{title}: {len(announced)} of {len(own)}")
        for line in own:
            if (line in announced) == wrong:
                told = verdict(line) or "nothing"
                rows.append(
                    f"  {percent(gone(line))} gone, {told}: {line['group']}, {line['name']}"
                )
    return "\n".join(rows)


def seconds(name: str, recipe: str, check: bool) -> tuple[float, int]:
    """Of one eraser, and its tries."""
    pipe, words = load_pipeline(), None if recipe == "closed-form" else OBJECTS
    started = time.perf_counter()
    how = {"check": check, "allow_weak": True, "progress": False}
    results = erase(pipe, name, recipe=recipe, vocabulary=words, **how).config.results
    return time.perf_counter() - started, len(results.get("check", {}).get("tries", "1"))


TIMES = {"closed-form": 5, "surgical-age": 1}


def cost(recipes: Sequence[str], name: str = "truck") -> str:
    """Seconds with and without the check, which take turns; the first closed form warms up."""
    seconds(name, "closed-form", True)
    rows = ["| recipe | with its check, s | tries | without, s | ratio |"]
    rows += ["| --- | ---: | ---: | ---: | ---: |"]
    for recipe in recipes:
        turns = range(TIMES[recipe])
        found = [[seconds(name, recipe, check) for check in (True, False)] for _ in turns]
        checked, bare = (median(one[0] for one in way) for way in zip(*found, strict=True))
        tries = found[0][0][1]
        rows.append(f"| {recipe} | {checked:.2f} | {tries} | {bare:.2f} | {checked / bare:.2f} |")
    return "\n".join(rows)


def chosen(group: str, name: str, parts: Sequence[str] | None) -> bool:
    return not parts or any(part == group or part in name for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", nargs="+", help="groups, or parts of calls")
    parser.add_argument("--n", type=int, default=48, help="pictures of each thing that is asked")
    parser.add_argument("--steps", type=int, default=8, help="of the sampler")
    parser.add_argument("--out", type=Path, default=Path("build/asked.jsonl"))
    parser.add_argument("--base", type=Path, default=Path("build/asked-base.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print what the file holds")
    parser.add_argument("--calibrate", action="store_true", help="only print of the check")
    parser.add_argument("--cost", nargs="*", choices=TIMES, help="only time the check of these")
    options = parser.parse_args()
    if options.cost is not None:
        print(cost(options.cost or list(TIMES)))
        return
    lines = read_lines(options.out)
    if options.calibrate:
        print(calibration(lines))
        return
    done = {(line["group"], line["name"]) for line in lines}
    wanted = [] if options.table else [c for c in cells() if (c.group, c.name) not in done]
    pictures = Pictures(options.base, options.steps)
    for cell in wanted:
        if not chosen(cell.group, cell.name, options.cells):
            continue
        line = measured(cell, pictures, options.n)
        lines.append(line)
        append_lines(options.out, line)
        print(
            cell.group, cell.name, f"{line['seconds']} s", verdict(line) or line["error"], end=" "
        )
        print({title: ask["erased"] for title, ask in line["gone"].items()}, flush=True)
    print(table([line for line in lines if chosen(line["group"], line["name"], options.cells)]))


if __name__ == "__main__":
    main()
