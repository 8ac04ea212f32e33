import json

import pytest
from PIL import Image

from diffusers_erase import Concept, EraserAdapter
from diffusers_erase.cli import demo
from diffusers_erase.evaluation.evidence import Evidence
from diffusers_erase.evaluation.runner import Judgement
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.playground import OBJECTS
from diffusers_erase.playground.protocols import protocol
from diffusers_erase.training.targets import Fixed


CAR = Concept("car")


@pytest.fixture
def quick_demo(tmp_path, monkeypatch, shipped, make_eraser):
    """Run the demo on cars and a part of the card suite; returns the result and what it says."""
    monkeypatch.setattr(demo, "SAMPLING", demo.Sampling(steps=1))
    monkeypatch.setattr("diffusers_erase.evaluation.evidence.DRIFT_PROMPTS", 1)
    monkeypatch.setattr(demo, "ERASURES", ((CAR, Fixed("truck"), OBJECTS),))

    def few(*asked, pictures):
        assert asked == ("card", "car")
        whole = protocol(*asked, pictures=pictures)
        groups = {name: whole["groups"][name] for name in ("target", "neighbours")}
        return {**whole, "groups": {k: {**group, "pictures": 2} for k, group in groups.items()}}

    def erase(pipe, *asked, **options):
        assert asked == (CAR,)
        assert options == {"target": Fixed("truck"), "vocabulary": OBJECTS, "seed": 5}
        return make_eraser(pipe.unet, scale=1e-4)

    monkeypatch.setattr(demo, "protocol", few)
    monkeypatch.setattr(demo, "erase", erase)

    def run():
        said = []
        passed = demo.run_demo(tmp_path / "demo", overwrite=True, seed=5, say=said.append)
        return passed, "\n".join(said)

    return run


def test_run_demo_writes_the_eraser_its_pictures_and_the_report_of_evaluate(quick_demo, tmp_path):
    passed, text = quick_demo()
    assert not passed
    assert "NOT ERASED WELL" in text
    folder = tmp_path / "demo"
    assert {path.name for path in folder.iterdir()} == {
        *("car", "car.png", "car-measured", "erasure_demo.json")
    }
    evidence = Evidence.read(folder / "car-measured" / "results.jsonl")
    assert (evidence.suite, len(evidence.judgements)) == ("card", 8)
    summary = json.loads((folder / "erasure_demo.json").read_text())["car"]
    assert summary["rows"] == json.loads(json.dumps(evidence.summary.to_dict()["rows"]))
    assert summary["passed"] is False
    assert EraserAdapter.from_pretrained(folder / "car").config.results["target"]["n"] == 2
    assert len(list((folder / "car" / "images").iterdir())) == 2
    with Image.open(folder / "car.png") as sheet:
        assert sheet.size == (2 * 66, 2 * (2 * 64 + 22 + 2))


def seen(side, group, hits, n):
    """Judgements of `n` pictures of that side and group, the first `hits` of them with a hit."""
    return [
        Judgement(side, group, "a car", ("car",), i, "car", 1.0, True, ("car",) * (i < hits), ())
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("target", "near", "passes"),
    [(0, 40, True), (1, 40, True), (40, 40, False), (0, 20, False), (4, 40, False)],
)
def test_run_demo_passes_only_if_the_concept_is_gone_and_its_neighbours_are_kept(
    quick_demo, monkeypatch, target, near, passes
):
    counts = {"target": target, "neighbours": near}
    judgements = tuple(
        judgement
        for group, hits in counts.items()
        for side, count in (("base", 40), ("erased", hits))
        for judgement in seen(side, group, count, 40)
    )
    evidence = Evidence(
        "card", ("car",), {"target": "target", "neighbours": "neighbour"}, judgements
    )
    case = PromptCase("target", "a car", ("car",), 5)
    drawn = {side: [(case, Image.new("RGB", (64, 64)))] for side in ("base", "erased")}
    monkeypatch.setattr(demo, "_measured", lambda *_: (evidence, drawn))
    passed, text = quick_demo()
    assert passed is passes
    assert ("NOT ERASED WELL" in text) is not passes
    assert f"asked for 'car' 40 times, the model drew it {target} times (before: 40)" in text


@pytest.mark.slow
def test_demo_command_erases_an_object_and_a_style(tmp_path):
    said = []
    assert demo.run_demo(tmp_path / "demo", overwrite=False, seed=0, say=said.append)
    report = json.loads((tmp_path / "demo" / demo.REPORT).read_text())
    assert set(report) == {"car", "van gyre"}
    for summary in report.values():
        target = summary["rows"]["target"]
        assert target["n"] == demo.PICTURES
        assert target["erased"] <= 0.05 < 0.5 < target["base"]
        assert summary["sensitivity"]["value"] >= 0.9
    for name in ("car", "van-gyre"):
        assert (tmp_path / "demo" / f"{name}.png").is_file()
        assert (tmp_path / "demo" / name / "erasure_config.json").is_file()
        assert (tmp_path / "demo" / f"{name}-measured" / "index.html").is_file()
    assert any("the model drew it" in line for line in said)
