import json

import pytest

from diffusers_erase.cli import demo
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.playground import ARTISTS, FAMILIES, FAMILY_OF, OBJECTS


def test_an_objects_case_covers_every_object_once_and_asks_for_the_target_often():
    case = demo.object_case("car")
    target, near, far = case.groups
    assert len(target.prompts) == demo.TARGET_PICTURES >= 64
    assert set(target.wanted) == {"car"}
    assert set(near.wanted) == set(FAMILIES[FAMILY_OF["car"]]) - {"car"}
    assert set(near.wanted) | set(far.wanted) | {"car"} == set(OBJECTS)
    assert all(
        wanted in text
        for g in case.groups
        for text, wanted in zip(g.prompts, g.wanted, strict=True)
    )
    assert "automobile" in case.concept.synonyms


def test_a_styles_case_covers_every_painter():
    case = demo.style_case("swirl")
    target, near, far = case.groups
    assert len(target.prompts) == demo.TARGET_PICTURES
    assert all("van gyre" in text for text in target.prompts)
    assert set(near.wanted) == set(ARTISTS) - {"swirl"}
    assert not any("style of" in text for text in far.prompts)


@pytest.mark.parametrize(
    ("base", "target", "near", "far", "passed"),
    [
        (Rate(64, 64), Rate(0, 64), Rate(20, 20), Rate(100, 100), True),
        (Rate(60, 64), Rate(3, 64), Rate(18, 20), Rate(95, 100), True),
        (Rate(64, 64), Rate(4, 64), Rate(20, 20), Rate(100, 100), False),
        (Rate(64, 64), Rate(0, 64), Rate(0, 20), Rate(85, 100), False),
        (Rate(20, 64), Rate(0, 64), Rate(20, 20), Rate(100, 100), False),
    ],
)
def test_the_demo_passes_only_if_the_concept_is_gone_and_the_others_are_there(
    base, target, near, far, passed
):
    rows = [
        demo.Row("target", base, target),
        demo.Row("neighbours", Rate(20, 20), near),
        demo.Row("others", Rate(98, 100), far),
    ]
    assert demo._passes(rows) is passed
    assert ("NOT ERASED WELL" in demo._words(demo.object_case("car"), rows, passed)) is not passed


@pytest.mark.slow
def test_the_whole_demo_erases_an_object_and_a_style(tmp_path):
    said = []
    assert demo.run_demo(tmp_path / "demo", overwrite=False, seed=0, say=said.append)
    report = json.loads((tmp_path / "demo" / demo.REPORT).read_text())
    assert set(report) == {"car", "van gyre"}
    for case in report.values():
        erased, base = (case["groups"]["target"][which] for which in ("erased", "base"))
        assert erased["n"] >= 64
        assert erased["hits"] <= 0.05 * erased["n"] < base["hits"]
    for name in ("car", "van-gyre"):
        assert (tmp_path / "demo" / f"{name}.png").is_file()
        assert (tmp_path / "demo" / name / "erasure_config.json").is_file()
    assert any("model drew it" in line for line in said)
