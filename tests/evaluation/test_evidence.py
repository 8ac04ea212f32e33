import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from diffusers_erase.attacks.sampling import Completion, SeedSearch
from diffusers_erase.cli import app
from diffusers_erase.concepts import Concept
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import AttackResult, Attempt
from diffusers_erase.evaluation.evidence import Evidence, evaluate
from diffusers_erase.evaluation.report import markdown, sheets_of, write_report
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import Suite
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.model import Model


SUITE = Suite.of(
    {
        "suite": "small",
        "concept": "car",
        "groups": {
            "target": {"prompts": ["a photo of a red car"], "show": "car", "pictures": 4},
            "neighbour": {"words": ["truck"], "templates": ["a photo of a red {}"], "pictures": 4},
        },
    }
)
ATTACKS = (SeedSearch(tries=2), Completion(steps=(4,)))


@pytest.fixture(scope="module")
def eraser(shipped):
    return erase(shipped, Concept("car"), recipe="closed-form", vocabulary=("fish", "oak", "star"))


@pytest.fixture
def runner(playground, judge, eraser, tmp_path):
    playground.load_erasure(eraser, "car")
    sampler = PipelineSampler(playground, judge, Sampling(steps=5, batch=8))
    return Runner(sampler, tmp_path / "work", progress=False)


@pytest.fixture
def evidence(runner):
    return evaluate(runner, SUITE, attacks=ATTACKS, attempts=4)


def test_an_erased_concept_is_gone_and_the_control_finds_it(evidence):
    rows = {row.name: row for row in evidence.summary.rows}
    assert rows["target"].base.value >= 0.75
    assert rows["target"].erased.value <= 0.25
    assert rows["neighbour"].erased.value >= 0.75
    assert evidence.esr(1).value == 1 - rows["target"].erased.value
    assert evidence.esr(5).value <= evidence.esr(1).value
    assert evidence.psr(5).value >= evidence.psr(1).value >= 0.75
    search = evidence.recovered("seed-search")
    assert search.post.value <= 0.25
    assert evidence.recovered("seed-search", "base").post.value >= 0.75
    assert search.evaluations == 4 * 2 * 2 * 5
    assert evidence.recovered("noise") is None
    assert evidence.drift["null"] < 1e-10
    card = evidence.card()
    assert card["target"]["erased"] == rows["target"].erased.value
    assert card["attacks"] in (card["attack seed-search"], card["attack completion"])


def test_it_is_written_and_counted_anew_from_the_raw_file(evidence, runner, tmp_path):
    folder = write_report(evidence, tmp_path / "report", sheets_of(runner, SUITE))
    again = Evidence.read(folder / "results.jsonl")
    assert again == dataclasses.replace(evidence, about=again.about)
    assert again.summary.plain() == evidence.summary.plain()
    told = json.loads((folder / "summary.json").read_text())
    assert told["rows"]["target"]["n"] == 4
    assert told["attacks"]["completion, erased"]["evaluations"] > 0
    assert (folder / "table.md").read_text() == markdown(evidence)
    with Image.open(folder / "pictures" / "target.png") as sheet:
        assert sheet.width >= 4 * 64
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "://" not in page
    assert "<script" not in page


def test_its_numbers_go_onto_the_card(evidence, eraser, hub, tmp_path):
    results = write_report(evidence, tmp_path / "report") / "results.jsonl"
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    pushed = CliRunner().invoke(app, ["push", str(folder), "user/car", "--results", str(results)])
    assert pushed.exit_code == 0, pushed.exception
    card = ModelCard.load("user/car")
    told = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert told["the concept, by name"] == evidence.card()["target"]["erased"]
    assert told["attack seed-search"] == evidence.card()["attack seed-search"]["erased"]
    assert EraserAdapter.from_pretrained("user/car").config.results == evidence.card()


def test_what_was_not_measured_is_said(runner):
    text = markdown(evaluate(runner, SUITE))
    assert "| generality | not measured |" in text
    assert "| harmonic mean | not measured |" in text
    assert "Attacks: not measured." in text


def test_a_control_is_what_the_attack_drew_and_not_what_is_shown_without_it(evidence):
    def recovery(found, images):
        shown = Attempt("a car", ("car",), 0, True, True, found, images, 10)
        return AttackResult("noise", "sampler", (shown,))

    def told(*recoveries):
        several = tuple(zip(("base", "erased"), recoveries, strict=True))
        (row,) = (
            line
            for line in markdown(dataclasses.replace(evidence, recoveries=several)).splitlines()
            if line.startswith("| noise |")
        )
        return [cell.strip() for cell in row.split("|")[5:7]]

    own, control = told(recovery(1, 4), recovery(3, 4))
    assert own.startswith("75.0 %")
    assert control.startswith("25.0 %")
    assert told(recovery(0, 0), recovery(0, 4))[1] == "none drawn: shown without it"


def test_a_second_run_draws_nothing_and_writes_the_same(evidence, runner):
    lines = list(evidence.lines())
    with counted(Model.of(runner.sampler.pipe).denoiser) as spent:
        again = evaluate(runner, SUITE, attacks=ATTACKS, attempts=4)
        assert spent() <= 1000  # drift alone is measured anew
    assert list(again.lines()) == lines


def test_attacks_are_told_of_beside_what_is_kept_or_not_at_all(runner):
    with pytest.raises(ErasureError, match="a broken model resists them all"):
        evaluate(runner, SUITE.only("target"), attacks=ATTACKS)
    with pytest.raises(ErasureError, match="no group of relation `target`"):
        evaluate(runner, SUITE.only("neighbour"), attacks=ATTACKS)


def test_nothing_is_measured_without_an_eraser(runner):
    runner.sampler.pipe.unload_erasures()
    with pytest.raises(ErasureError, match="No eraser is loaded"):
        evaluate(runner, SUITE)


@pytest.mark.parametrize("text", ["", "{}", "[1]\n", '{"header": {"format": "other"}}\n'])
def test_what_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(ErasureError, match="results"):
        Evidence.read(tmp_path / "results.jsonl")


@pytest.fixture
def folder(eraser, tmp_path):
    return eraser.save_pretrained(tmp_path / "erase-car")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--suite", "cards"], "No suite named 'cards'. Did you mean 'card'"),
        (["--attack", "seedsearch"], "Did you mean 'seed-search'"),
        (["--detector", "jury"], "No detector named 'jury'"),
        (["--suite", "none.yaml"], "Cannot read 'none.yaml'"),
    ],
)
def test_unknown_names_bring_the_nearest_and_nothing_is_written(
    folder, tmp_path, options, complaint
):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["evaluate", str(folder), "-o", str(out), *options])
    assert complaint in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["erase-car"]


def test_a_folder_that_is_somebody_elses_is_not_written_to(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    command = ["evaluate", str(folder), "-o", str(tmp_path / "out"), "--overwrite"]
    assert "holds something else" in str(CliRunner().invoke(app, command).exception)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_file(folder, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "concept: car\ngroups:\n"
        "  target: {prompts: [a photo of a red car], show: car, pictures: 24}\n"
        "  neighbour: {words: [truck, bus], pictures: 24}\n"
    )

    def command(out):
        arguments = ["--suite", suite, "-o", tmp_path / out, "--batch", "4"]
        return [sys.executable, "-m", "diffusers_erase.cli", "evaluate", folder, *arguments]

    subprocess.run(command("whole"), check=True, capture_output=True)
    victim = subprocess.Popen(
        command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    found = tmp_path / "killed.run" / "verdicts.0.jsonl"
    while not (found.is_file() and len(found.read_text().splitlines()) > 12):
        assert victim.poll() is None
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed").exists()
    had = len(found.read_text().splitlines())
    subprocess.run(command("killed"), check=True, capture_output=True)
    assert len(found.read_text().splitlines()) <= 96 + 4
    assert had < 96
    whole, killed = (tmp_path / out / "results.jsonl" for out in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.slow
def test_two_processes_share_a_run_and_end_in_the_same_file(folder, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "concept: car\ngroups:\n"
        "  target: {prompts: [a photo of a red car], show: car, pictures: 4}\n"
        "  neighbour: {words: [truck], pictures: 4}\n"
    )
    for out, start in (("one", []), ("two", ["torch.distributed.run", "--nproc_per_node=2", "-m"])):
        arguments = ["evaluate", folder, "--suite", suite, "-o", tmp_path / out]
        command = [sys.executable, "-m", *start, "diffusers_erase.cli", *arguments]
        subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "one" / "results.jsonl").read_bytes() == (
        tmp_path / "two" / "results.jsonl"
    ).read_bytes()
    shares = [len(path.read_text().splitlines()) for path in (tmp_path / "two.run").glob("verd*")]
    assert shares == [8, 8]
