import json
import sys

import pytest
from typer.testing import CliRunner

from diffusers_erase.cli import app
from diffusers_erase.concepts import Concept
from diffusers_erase.making.api import erase


QUICK = ["--steps", "1", "--pictures", "1"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def field(tmp_path):
    path = tmp_path / "field.yaml"
    path.write_text("families: {vehicle: [car, bus], tree: [oak]}\ntemplate: a photo of a red {}\n")
    return path


def test_graph_command_writes_a_report_and_resumes(field, tmp_path):
    out = tmp_path / "graph"
    result = run("graph", "--protocol", field, "-o", out, "--recipe", "uce", *QUICK)
    assert result.exit_code == 0, result.exception
    assert {path.name for path in out.iterdir()} == {
        *("graph.json", "graph.csv", "table.md", "index.html", "heat_map.png", "wheel.png")
    }
    told = json.loads((out / "graph.json").read_text())
    assert set(told["erased"]) == {"car", "bus", "oak"}
    assert -1 <= (told["locality"] or 0) <= 1
    assert "harm within families" in result.stdout
    again = run("graph", "--protocol", field, "-o", out, "--recipe", "uce", *QUICK)
    assert "exists already" in str(again.exception)
    before = (out / "graph.json").read_text()
    assert (
        run(
            *("graph", "--protocol", field, "-o", out, "--recipe", "uce", "--overwrite"), *QUICK
        ).exit_code
        == 0
    )
    assert (out / "graph.json").read_text() == before


def test_erasers_one_after_another(field, tmp_path, shipped):
    words = ("car", "bus", "oak", "fish", "star")
    folders = []
    for word, target in (("car", "fish"), ("bus", "star")):
        others = [w for w in words if w != word]
        eraser = erase(
            shipped,
            Concept(word),
            recipe="closed-form",
            target=target,
            vocabulary=others,
            check=False,
        )
        folders.append(eraser.save_pretrained(tmp_path / f"erase-{word}"))
    out = tmp_path / "line.json"
    result = run("continual", *folders, "--protocol", field, "-o", out, *QUICK)
    assert result.exit_code == 0, result.exception
    assert [line["erased"] for line in json.loads(out.read_text())] == ["car", "bus"]
    assert "after bus" in result.stdout
    twice = run(
        "continual", *folders, folders[0], "--protocol", field, "-o", tmp_path / "x", *QUICK
    )
    assert "erases 'car' a second time" in str(twice.exception)
    assert "exists already" in str(
        run("continual", *folders, "--protocol", field, "-o", out, *QUICK).exception
    )


def test_another_model_needs_a_protocol_of_its_own(tmp_path):
    result = run("graph", "--model", "somewhere", "-o", tmp_path / "graph")
    assert "'netfive', or a YAML file" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_graph_refuses_an_unknown_recipe_before_it_draws(field, tmp_path):
    result = run("graph", "--protocol", field, "-o", tmp_path / "graph", "--recipe", "ucee", *QUICK)
    assert "No recipe 'ucee'. Did you mean 'uce'" in str(result.exception)
    assert not (tmp_path / "graph").exists()


def test_evaluate_reaches_nudenet_by_its_name(make_eraser, shipped, tmp_path, monkeypatch):
    folder = make_eraser(shipped.unet).save_pretrained(tmp_path / "erase-car")
    monkeypatch.setitem(sys.modules, "nudenet", None)
    result = run("evaluate", folder, "-o", tmp_path / "out", "--detector", "nudenet")
    assert "pip install diffusers-erase[nsfw]" in str(result.exception)
