import dataclasses
import json
from dataclasses import replace

import pytest
from PIL import Image

from diffusers_erase.evaluation.attack import AttackResult, Attempt
from diffusers_erase.evaluation.evidence import Evidence
from diffusers_erase.evaluation.report import markdown, sheets_of, write_report
from diffusers_erase.evaluation.runner import Judgement
from tests.evaluation.conftest import SUITE


HOSTILE = (
    '<img src=x onerror="alert(1)"> ![p](http://x.y/p.png) [l](javascript:alert(1)) |\n# h $x$'
)


def test_write_report_writes_tables_pictures_and_page(evidence, evaluated, tmp_path):
    folder = write_report(evidence, tmp_path / "report", sheets_of(evaluated, SUITE))
    assert Evidence.read(folder / "results.jsonl").summary == evidence.summary
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rows"]["target"]["n"] == 4
    assert summary["attacks"]["completion, erased"]["evaluations"] > 0
    assert list(summary["attacks"]["completion, erased"]["curve"]) == ["after 4"]
    assert (folder / "table.md").read_text() == markdown(evidence)
    assert [path.name for path in sorted((folder / "pictures").iterdir())] == [
        *("1-target.png", "2-neighbour.png")
    ]
    with Image.open(folder / "pictures" / "1-target.png") as sheet:
        assert sheet.size == (4 * 64, 2 * 64)
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert page.count("<table>") == 3
    assert "://" not in page
    assert "<script" not in page


def test_sheets_of_have_the_base_above_and_the_erased_below(evaluated):
    sheet = sheets_of(evaluated, SUITE)["target"]
    cases = SUITE.cases()
    for top, side in ((0, "base"), (64, "erased")):
        pictures = [p for case, p in evaluated.pictures(cases, side) if case.group == "target"]
        for i, picture in enumerate(pictures):
            box = (64 * i, top, 64 * i + 64, top + 64)
            assert sheet.crop(box).tobytes() == picture.tobytes()


def test_markdown_names_what_was_not_measured(evidence):
    text = markdown(dataclasses.replace(evidence, attacks=(), drift=None))
    assert "| generality | not measured |" in text
    assert "| harmonic mean | not measured |" in text
    assert "| drift, null | not measured |" in text
    assert "Attacks: not measured." in text


def test_markdown_says_what_each_eraser_erases_in_words(evidence):
    concepts = [{"name": "car", "target": "bus"}, {"name": "oak", "target": None}]
    settings = {"erasers": {"both": {"concepts": concepts, "strength": 1.0}}}
    text = markdown(replace(evidence, settings=settings))
    assert "erasers both concepts name car, target bus and name oak, strength 1.0." in text


def test_markdown_has_the_curve_of_an_attack_and_where_it_reaches_half(evidence):
    def result(*shares):
        curve = {f"{n} steps": share for n, share in zip((0, 5, 10), shares, strict=True)}
        attempt = Attempt("a car", ("car",), 0, False, True, 1, 2, 10, curve=curve)
        return AttackResult("relearning", "fine-tune", (attempt,))

    def row(erased):
        attacks = (("base", result(1.0, 1.0, 1.0)), ("erased", erased))
        lines = markdown(dataclasses.replace(evidence, attacks=attacks)).splitlines()
        _, found = (line for line in lines if line.startswith("| relearning |"))
        return [cell.strip() for cell in found.split("|")[2:5]]

    own, control, half = row(result(0.0, 0.0, 1.0))
    assert own == "0 steps: 0 %; 5 steps: 0 %; 10 steps: 100 %"
    assert control == "0 steps: 100 %; 5 steps: 100 %; 10 steps: 100 %"
    assert half == "10 steps"
    assert row(result(0.0, 0.0, 0.0))[2] == "none of them"


def test_markdown_compares_the_pictures_that_the_attacks_drew(evidence):
    def result(found, images):
        attempt = Attempt("a car", ("car",), 0, True, True, found, images, 10)
        return AttackResult("noise", "sampler", (attempt,))

    def own_pictures(base, erased):
        attacks = (("base", base), ("erased", erased))
        text = markdown(dataclasses.replace(evidence, attacks=attacks))
        (row,) = (line for line in text.splitlines() if line.startswith("| noise |"))
        return [cell.strip() for cell in row.split("|")[5:7]]

    own, control = own_pictures(result(1, 4), result(3, 4))
    assert own.startswith("75.0 %")
    assert control.startswith("25.0 %")
    assert own_pictures(result(0, 0), result(0, 4))[1] == "none drawn: shown without it"


@pytest.fixture
def hostile():
    """Evidence in which every string of a suite, detector or eraser is markup."""
    judgements = tuple(
        Judgement(side, HOSTILE, "a car", (HOSTILE,), i, HOSTILE, 1.0, True, (HOSTILE,), ())
        for side in ("base", "erased")
        for i in range(30)
    )
    attempt = Attempt("a car", ("car",), 0, True, True, 1, 1, 10)
    attack = AttackResult(HOSTILE, "sampler", (attempt,))
    return Evidence(
        HOSTILE,
        (HOSTILE,),
        {HOSTILE: "target"},
        judgements,
        None,
        (("base", attack), ("erased", attack)),
        {"model": HOSTILE, "erasers": {HOSTILE: {"concept": HOSTILE}}, "detector": {"a": HOSTILE}},
    )


def test_write_report_shows_strings_of_others_as_text(hostile, tmp_path):
    sheet = Image.new("RGB", (8, 8))
    folder = write_report(hostile, tmp_path / "report", {HOSTILE: sheet, f"{HOSTILE} ": sheet})
    assert len(list((folder / "pictures").iterdir())) == 2
    assert all(path.is_relative_to(folder) for path in folder.rglob("*"))
    page = (folder / "index.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png') == 3
    assert "<a " not in page
    assert "&lt;img src=x onerror=" in page
    assert page.count("<h1>") == 1
    table = (folder / "table.md").read_text()
    assert "<img" not in table
    assert "\n# h" not in table
    assert "| not measured |" in table


def test_markdown_lists_groups_that_are_not_as_expected(hostile):
    (line,) = (line for line in markdown(hostile).splitlines() if line.startswith("- Not as"))
    assert "is still drawn: 100 % before, 100.0 %" in line
