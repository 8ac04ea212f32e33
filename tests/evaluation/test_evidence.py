import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from diffusers_erase.cli import app
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.evidence import Evidence, evaluate
from diffusers_erase.evaluation.report import write_report
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.model import Model
from tests.evaluation.conftest import ATTACKS, SUITE


def test_evaluate_finds_an_erased_concept_gone_and_its_neighbour_kept(evidence):
    rows = {row.name: row for row in evidence.summary.rows}
    assert rows["target"].base.value >= 0.75
    assert rows["target"].erased.value <= 0.25
    assert rows["neighbour"].erased.value >= 0.75
    assert evidence.esr(1).value == 1 - rows["target"].erased.value
    assert evidence.esr(5).value <= evidence.esr(1).value
    assert evidence.psr(5).value >= evidence.psr(1).value >= 0.75
    search = evidence.attack_result("seed-search")
    assert search.post.value <= 0.25
    assert evidence.attack_result("seed-search", "base").post.value >= 0.75
    assert search.evaluations == 4 * 2 * 2 * 5
    assert evidence.attack_result("noise") is None
    assert evidence.drift["null"] < 1e-10


def test_evidence_card_has_every_attack_and_the_most_successful_one(evidence):
    search, completion = (evidence.attack_result(name) for name in ("seed-search", "completion"))
    assert search.post.value < completion.post.value
    card = evidence.card()
    assert card["target"]["erased"] == evidence.summary.rows[0].erased.value
    assert card["attack seed-search"]["erased"] == search.post.value
    assert card["attacks"] == card["attack completion"]
    assert card["attacks"]["base"] == evidence.attack_result("completion", "base").post.value


def test_evidence_read_gives_what_lines_wrote(evidence, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(evidence.lines()))
    again = Evidence.read(path)
    assert again == dataclasses.replace(evidence, settings=again.settings)
    assert json.loads(json.dumps(evidence.settings)) == again.settings
    assert again.summary.to_dict() == evidence.summary.to_dict()


def test_evidence_card_is_published_by_push(evidence, eraser, hub, tmp_path):
    results = write_report(evidence, tmp_path / "report") / "results.jsonl"
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    pushed = CliRunner().invoke(app, ["push", str(folder), "user/car", "--results", str(results)])
    assert pushed.exit_code == 0, pushed.exception
    card = ModelCard.load("user/car")
    shown = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert shown["the concept, by name"] == evidence.card()["target"]["erased"]
    assert shown["attack seed-search"] == evidence.card()["attack seed-search"]["erased"]
    results = EraserAdapter.from_pretrained("user/car").config.results
    assert results == {**eraser.config.results, **evidence.card()}


def test_evaluate_again_draws_nothing_and_gives_the_same(evidence, evaluated):
    lines = list(evidence.lines())
    with counted(Model.of(evaluated.sampler.pipe).denoiser) as spent:
        again = evaluate(evaluated, SUITE, attacks=ATTACKS, attempts=4)
        latents = 2 * 10  # drift is not stored: two trajectories, and three roles twice
        assert spent() == 2 * latents + 2 * 3 * latents
    assert list(again.lines()) == lines


def test_evaluate_refuses_attacks_without_a_group_to_keep_or_a_target(evaluated):
    target, neighbour = ((group,) for group in SUITE.groups)
    with pytest.raises(ErasureError, match="a broken model resists them all"):
        evaluate(evaluated, dataclasses.replace(SUITE, groups=target), attacks=ATTACKS)
    with pytest.raises(ErasureError, match="no group of relation `target`"):
        evaluate(evaluated, dataclasses.replace(SUITE, groups=neighbour), attacks=ATTACKS)


def test_evaluate_refuses_a_pipeline_without_erasers(untrained, judge):
    with pytest.raises(ErasureError, match="No eraser is loaded"):
        evaluate(Runner(PipelineSampler(untrained, judge)), SUITE)


@pytest.mark.parametrize("text", ["", "{}", "[1]\n", '{"header": {"format": "other"}}\n'])
def test_evidence_read_refuses_files_that_are_no_results(tmp_path, text):
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
def test_evaluate_command_suggests_the_nearest_names_and_writes_nothing(
    folder, tmp_path, options, complaint
):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["evaluate", str(folder), "-o", str(out), *options])
    assert complaint in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["erase-car"]


def test_evaluate_command_does_not_overwrite_foreign_folders(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    command = ["evaluate", str(folder), "-o", str(tmp_path / "out"), "--overwrite"]
    assert "holds something else" in str(CliRunner().invoke(app, command).exception)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_evaluate_command_resumes_after_a_kill_with_the_same_file(folder, tmp_path):
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

    def found():
        files = (tmp_path / "killed.run").glob("verdicts.*.jsonl")
        return sum(len(file.read_text().splitlines()) for file in files)

    while not found() > 12:
        assert victim.poll() is None
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed").exists()
    had = found()
    subprocess.run(command("killed"), check=True, capture_output=True)
    assert found() <= 96 + 4
    assert had < 96
    whole, killed = (tmp_path / out / "results.jsonl" for out in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.slow
def test_evaluate_command_in_two_processes_gives_the_same_file(folder, tmp_path):
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
