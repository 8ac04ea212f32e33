"""Every example is short, runs on the playground, and keeps its word."""

import ast
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_erase import EraserAdapter, playground
from diffusers_erase.evaluation import pictures
from diffusers_erase.evaluation.evidence import Evidence
from diffusers_erase.making.checking import Check
from diffusers_erase.models import trajectories
from diffusers_erase.playground.world import OBJECTS
from diffusers_erase.training.recipes import SURGICAL_AGE


EXAMPLES = Path(__file__).parent.parent / "examples"

FEW = ("car", "van", "truck", "bus", "oak", "cat", "castle", "fish", "star", "sailboat")


pytestmark = pytest.mark.filterwarnings("default")  # as in a process of its own


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """`printed(name, *options)`: what the example prints, run with two steps in this process.

    Its recipe samples few trajectories, the world has few objects, its erasers are not checked, and
    it draws in 8 steps at most.
    """
    monkeypatch.chdir(tmp_path)
    few = replace(SURGICAL_AGE, trajectories=2, sampling_steps=4, pool=4)
    monkeypatch.setattr(
        "diffusers_erase.making.choosing.default_recipe",
        lambda model, vocabulary: few if vocabulary else replace(few, choose="given"),
    )
    monkeypatch.setattr(playground, "OBJECTS", FEW)
    monkeypatch.setattr("diffusers_erase.making.trying.check_eraser", lambda *_: Check("erased"))
    monkeypatch.setattr("diffusers_erase.evaluation.evidence.DRIFT_PROMPTS", 1)
    draw, sample = pictures.draw, trajectories.sample_trajectories
    monkeypatch.setattr(
        trajectories,
        "sample_trajectories",
        lambda *given, steps, **others: sample(*given, steps=2, **others),
    )

    def run(name, *options, most=8):
        def quick(pipe, prompts, steps=25, **others):
            return draw(pipe, prompts, steps=min(steps, most), **others)

        monkeypatch.setattr(pictures, "draw", quick)
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, "--steps", "2", *options])
        capsys.readouterr()
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs_in_a_process_of_its_own(name, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, "--steps", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


def rows(picture):
    """The upper and the lower row of a sheet of 64 x 64 pictures."""
    with Image.open(picture) as sheet:
        pixels = np.asarray(sheet.convert("RGB"), int)
    return pixels[:64], pixels[64:]


def test_erase_an_object_draws_the_target_in_the_place_of_cars_alone(printed, tmp_path):
    lines = printed("erase_an_object.py").splitlines()
    target = re.fullmatch(r"Cars are answered as (.+)\.", lines[0])[1]
    assert target in FEW
    seen = [line.rsplit(maxsplit=2)[1:] for line in lines[2:5]]
    assert seen == [["car", target], ["car", target], ["van", "van"]]
    base, erased = rows(tmp_path / "out" / "erase-car.png")
    assert base.shape == erased.shape == (64, 192, 3)
    changed = abs(base - erased).mean((0, 2)).reshape(3, 64).mean(1)
    assert changed[:2].min() > 2 * changed[2]
    assert EraserAdapter.from_pretrained(tmp_path / "out" / "erase-car").config.names[0] == "car"


@pytest.mark.slow
def test_measure_and_publish_puts_what_it_measured_on_the_card(printed, tmp_path):
    text = printed("measure_and_publish.py", "--steps", "1", "--pictures", "1")
    evidence = Evidence.read(tmp_path / "out" / "measured" / "results.jsonl")
    for row in evidence.summary.rows:
        assert f"{row.name:<12} base {row.base.value:4.0%}  erased {row.erased.value:4.0%}" in text
    assert f"verdict: {evidence.summary.verdict}" in text
    assert "counted anew from its raw lines: True" in text
    assert (tmp_path / "out" / "measured" / "index.html").is_file()
    card = (tmp_path / "out" / "erase-car" / "README.md").read_text(encoding="utf-8")
    for attack in ("noise", "inversion"):
        (line,) = re.findall(rf"\| attack {attack} \|.*", text)
        assert line in card


def test_stack_and_share_leaves_no_trace_and_shares_one_file(printed, tmp_path):
    text = printed("stack_and_share.py")
    for car in (0, 1):
        for painter in (0, 1):
            assert len(re.findall(rf"car {car}, painter {painter}: \w+", text)) == 1
    assert "bit for bit: True" in text
    assert re.search("differs by [01] of 255", text)
    sheet, _ = rows(tmp_path / "out" / "stack.png")
    assert sheet.shape == (64, 256, 3)
    both = EraserAdapter.from_pretrained(tmp_path / "out" / "erase-both").config.names
    assert both == ("car", "van gyre")


def test_neighbours_that_nobody_listed_counts_both_edits(printed, monkeypatch):
    monkeypatch.setattr(playground, "OBJECTS", OBJECTS)
    base, far, everything = printed("neighbours_that_nobody_listed.py", most=4).splitlines()[1:]
    counts = {
        line.split("  ")[0]: [int(hits) for hits in re.findall(r"(\d+) of (?:7|10|36)", line)]
        for line in (base, far, everything)
    }
    assert all(len(numbers) == 3 for numbers in counts.values())
    before, listed_far, listed_all = counts.values()
    assert before[0] > listed_far[0] == listed_all[0] == 0
    assert listed_far[1] <= listed_all[1]


def test_your_own_loop_looks_every_so_many_steps_until_the_end(printed):
    lines = printed("your_own_loop.py", "--every", "1", most=2).splitlines()
    assert [re.match(r"step +(\d+)", line)[1] for line in lines[:-1]] == ["0", "1"]
    assert re.fullmatch(r"14 layers trained, \d+ UNet evaluations\.", lines[-1])


def test_balance_a_concept_returns_the_best_of_its_rounds(printed):
    places = ("beach", "field", "night")
    lines = printed("balance_a_concept.py", "--count", "8", "--rounds", "2").splitlines()
    rounds = [
        [float(share) for share in re.findall(r"(?:beach|field|night) ([\d.]+)", line)]
        for line in lines
        if "are sailboats" in line
    ]
    assert [len(shares) for shares in rounds] == [len(places)] * 3
    best = ast.literal_eval(
        next(line for line in lines if "best:" in line).split("best:")[1].strip()
    )
    off = [max(abs(share - 1 / 3) for share in shares) for shares in rounds[1:]]
    assert list(best.values()) == pytest.approx(rounds[1 + off.index(min(off))], abs=0.006)
    assert re.fullmatch(r"car: \d of 8 with it loaded", lines[-1])


def test_all_examples_are_tested_and_short():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names <= set(re.findall(r'printed\("(\w+\.py)"', Path(__file__).read_text()))
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES.glob("*.py"))
