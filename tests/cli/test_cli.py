import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusers_erase import cli
from diffusers_erase.cli import drawing, making, sharing
from diffusers_erase.cli.options import asked_concepts, own_words
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.making import trying
from diffusers_erase.playground import ARTISTS, BACKGROUNDS, COLOURS, OBJECTS
from diffusers_erase.training.recipes import REPLACE


def command(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "diffusers_erase.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
        check=False,
    )


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """`diffusers-erase` with these arguments, in this process, which has imported the libraries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_quiet", lambda: None)

    def call(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["diffusers-erase", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, left.value.code or 0, said.out, said.err)

    return call


def test_help_names_the_commands(tmp_path):
    shown = command("--help", folder=tmp_path)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("demo", "train", "edit", "generate"))


def cache_of_one(check):
    """The check, which is made the first time alone."""
    found = []

    def once(*asked):
        found[:] = found or [check(*asked)]
        return found[0]

    return once


@pytest.mark.filterwarnings("default")
def test_train_then_generate(main, tmp_path, monkeypatch):
    few = replace(REPLACE, trajectories=2, sampling_steps=4)
    monkeypatch.setattr("diffusers_erase.training.recipes.default_recipe", lambda *_: few)
    asked = ("--concept", "car", "--target", "truck", "--steps", 2, "--no-check")
    trained = main("train", *asked, "--output", "eraser")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "eraser" / "erasure_config.json").is_file()
    options = ("--steps", 2, "--count", 2)
    drawn = main("generate", "a red car", "--eraser", "eraser", *options, "--out", "a.png")
    assert drawn.returncode == 0, drawn.stderr
    assert main("generate", "a red car", *options, "--out", "b.png").returncode == 0
    erased, base = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert erased.shape == (64, 128, 3)
    assert (erased != base).any()


@pytest.mark.filterwarnings("default")
def test_an_eraser_of_what_is_still_drawn_is_saved_if_that_is_allowed(main, tmp_path, monkeypatch):
    monkeypatch.setattr(trying, "check_eraser", cache_of_one(trying.check_eraser))
    asked = ("edit", "--concept", "bird", "--recipe", "uce", "--output", "eraser")
    refused = main(*asked)
    assert refused.returncode == 2
    assert "'bird' is" in refused.stderr
    assert "--allow-weak" in refused.stderr
    assert not (tmp_path / "eraser").exists()
    allowed = main(*asked, "--allow-weak")
    assert allowed.returncode == 0, allowed.stderr
    assert re.search("Checked: (weak|not erased)", allowed.stdout)
    assert (tmp_path / "eraser" / "README.md").is_file()


@pytest.mark.filterwarnings("default")
def test_edit_from_a_folder_portable_and_not(main, untrained, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    untrained.save_pretrained(tmp_path / "model")
    (tmp_path / "words.txt").write_text("truck\nvan\noak\n")
    shared = ("edit", "--model", "model", "--concept", "car", "--vocabulary", "words.txt")
    for extra, files in (
        (
            (),
            {
                "pytorch_lora_weights.safetensors",
                "text_map.safetensors",
            },
        ),
        (("--portable",), {"text_map.safetensors"}),
    ):
        done = main(*shared, *extra, "--output", "eraser", "--overwrite")
        assert done.returncode == 0, done.stderr
        assert "Erased 'car', answered as '" in done.stdout
        written = {path.name for path in (tmp_path / "eraser").iterdir()}
        assert written == files | {"erasure_config.json", "README.md"}
        untrained.load_erasure(tmp_path / "eraser")
        untrained.unload_erasures()
    refused = main(*shared, "--recipe", "esd", "--output", "other")
    assert refused.returncode == 2
    assert "'esd' is trained, not solved" in refused.stderr


@pytest.fixture
def run(tmp_path, monkeypatch, untrained, make_eraser):
    """Run a command in a folder with an eraser, a broken one and a diary: code and exception."""
    monkeypatch.chdir(tmp_path)
    for commands in (drawing, making, sharing):
        monkeypatch.setattr(commands, "opened_model", lambda model, **_: untrained)
    make_eraser(untrained.unet).save_pretrained("good")
    make_eraser(untrained.unet).save_pretrained("broken")
    (tmp_path / "broken" / "pytorch_lora_weights.safetensors").write_bytes(b"junk")
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "today.txt").write_text("dear diary")
    (tmp_path / "there.png").write_bytes(b"")

    def run(*arguments):
        result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        return result.exit_code, result.exception

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--concept", "", "--output", "new"), "empty"),
        (("train", "--concept", "car, truck", "--output", "new"), "repeat --concept for each"),
        (("edit", "--concept", "car and truck", "--output", "new"), "repeat --concept for each"),
        (("train", "--concept", "car", "--output", "good"), "exists already.*--overwrite"),
        (("train", "--concept", "car", "--output", "diary", "--overwrite"), "something else"),
        (("train", "--concept", "car", "--output", "there.png/new"), "Cannot write"),
        (
            ("train", "--concept", "car", "--kind", "verb", "--output", "new"),
            "Known: object, style, person, attribute",
        ),
        (
            ("train", "--concept", "car", "--recipe", "magic", "--output", "new"),
            "No recipe 'magic'",
        ),
        (
            ("train", "--concept", "car", "--robust", "--recipe", "esd", "--output", "new"),
            "--robust chooses the recipe",
        ),
        (("edit", "--concept", "car", "--output", "good"), "exists already.*--overwrite"),
        (("edit", "--concept", "", "--output", "new"), "empty"),
        (("edit", "--concept", "car", "--target", "car", "--output", "new"), "concept itself"),
        (("edit", "--concept", "car", "--captions", "none.txt", "--output", "new"), "Cannot read"),
        (
            ("train", "--concept", "car", "--recipe", "uce", "--rank", "0", "--output", "new"),
            "rank",
        ),
        (
            ("train", "--concept", "car", "--recipe", "uce", "--steps", "3", "--output", "new"),
            "is solved and not trained; leave out steps",
        ),
        (("generate", "a car", "--eraser", "broken"), "no readable safetensors"),
        (("generate", "a car", "--eraser", "missing"), "no folder 'missing'"),
        (
            ("generate", "a car", "--eraser", "diary"),
            "holds neither erasure_config.json nor weights",
        ),
        (("generate", "a car", "--out", "there.png"), "exists already"),
        (("generate", "a car", "--out", "nowhere/a.png"), "no folder 'nowhere'"),
        (("generate", "a car", "--out", "a.gif"), "PNG"),
        (("demo", "--out", "diary"), "exists already"),
        (("demo", "--out", "diary", "--overwrite"), "something else"),
        (("demo", "--out", "there.png/demo"), "Cannot write"),
    ],
)
def test_commands_report_errors_in_one_sentence_and_leave_no_files(
    run, tmp_path, arguments, message
):
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    _, error = run(*arguments)
    assert isinstance(error, ErasureError)
    assert re.search(message, str(error)), str(error)
    assert "\n" not in str(error)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("names", "kind", "concepts"),
    [
        (["red"], None, [Concept("red", "attribute")]),
        (["red"], "object", [Concept("red", "object")]),
        (["lumina style", "car", "Cars"], None, [Concept("lumina", "style"), Concept("car")]),
        (['"Paris, Texas"'], None, [Concept("Paris, Texas")]),
        (['"a style"'], "style", [Concept("a style", "style")]),
    ],
)
def test_concepts_are_understood_as_by_erase(names, kind, concepts):
    assert list(asked_concepts(names, kind, None, several="")) == concepts


def test_the_playground_lists_words_of_the_kinds_of_the_concepts():
    style, car = Concept("lumina", "style"), Concept("car")
    assert set(own_words("playground", [style]).words) == set(ARTISTS.values())
    assert own_words("playground", [Concept("red")]).words == COLOURS
    assert own_words("playground", [Concept("night")]).words == BACKGROUNDS
    assert set(own_words("playground", [style, car]).words) == {*ARTISTS.values(), *OBJECTS}
    assert {"blue car", "truck"} < set(own_words("playground", [Concept("red car")]).words)
    assert own_words("playground", [Concept("Ada", "person")]) is None
    assert own_words("another", [car]) is None


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "process", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["here", "process"]
)
def test_errors_leave_with_code_2_and_one_line(main, tmp_path, process):
    asked = ("generate", "a car", "--eraser", "nowhere", "--model", "no/model", "--out", "x.png")
    done = command(*asked, folder=tmp_path) if process else main(*asked)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Cannot open the model 'no/model'")
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_demo_command_exits_with_1_if_it_erases_badly(run, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_erase.cli.demo.run_demo", lambda *_, **__: False)
    assert run("demo", "--out", "new")[0] == 1
