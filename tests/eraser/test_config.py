"""`EraserConfig` and `ErasedConcept`: what an eraser says of itself."""

import json
import math

import pytest

from diffusers_erase.concepts import Concept
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.errors import ErasureError


PARIS = ErasedConcept("Paris, Texas", "style", ("Wenders's film",), "a road")
CAR = ErasedConcept(
    "car", synonyms=("auto",), choice="trial", scores={"van": 0.5, "bus": 0.25}, best="lowest"
)


def test_config_is_plain_json_and_comes_back_equal():
    config = EraserConfig((CAR, PARIS), parameters={"parts": ["to_k"], "rank": 4})
    content = config.to_dict()
    assert json.loads(json.dumps(content)) == content
    assert EraserConfig.from_dict(content) == config
    assert content["concepts"][1] == {
        "name": "Paris, Texas",
        "kind": "style",
        "synonyms": ["Wenders's film"],
        "target": "a road",
        "choice": "given",
        "scores": {},
        "best": None,
    }


def test_every_concept_has_its_own_kind_and_synonyms():
    config = EraserConfig((CAR, PARIS))
    assert config.names == ("car", "auto", "Paris, Texas", "Wenders's film")
    assert [each.concept for each in config.concepts] == [
        Concept("car", "object", ("auto",)),
        Concept("Paris, Texas", "style", ("Wenders's film",)),
    ]


@pytest.mark.parametrize(
    ("count", "title"),
    [(1, "a"), (2, "a and b"), (4, "a, b, c and d"), (6, "a, b, c and 3 more")],
)
def test_title_names_the_concepts_in_words(count, title):
    assert EraserConfig(tuple(map(ErasedConcept, "abcdef"[:count]))).title == title


@pytest.mark.parametrize(
    ("best", "ranked"),
    [
        ("lowest", [("b", 1.0), ("a", 2.0)]),
        ("highest", [("a", 2.0), ("b", 1.0)]),
        (None, [("a", 2.0), ("b", 1.0)]),
    ],
)
def test_ranked_has_the_best_candidate_first(best, ranked):
    scores = {"a": 2.0, "x": None, "b": 1.0}
    assert ErasedConcept("car", scores=scores, best=best).ranked == ranked


def test_to_dict_writes_none_where_a_number_is_not_finite():
    scores = {"bus": math.nan, "van": 1.0}
    config = EraserConfig(
        (ErasedConcept("car", scores=scores),), results={"loss": math.inf, "of": [math.nan, 1.5]}
    )
    content = config.to_dict()
    assert content["results"] == {"loss": None, "of": [None, 1.5]}
    assert content["concepts"][0]["scores"] == {"bus": None, "van": 1.0}
    assert EraserConfig.from_dict(content).concepts[0].ranked == [("van", 1.0)]


def test_from_dict_keeps_the_keys_of_newer_versions_and_warns_once():
    content = {**EraserConfig((CAR,)).to_dict(), "gate": {"threshold": 0.5}, "unknown": 3}
    content["concepts"][0]["plural"] = "cars"
    with pytest.warns(UserWarning, match="kept but not understood: 'gate', 'plural', 'unknown'"):
        config = EraserConfig.from_dict(content)
    assert config.to_dict() == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"recipe": "esd"}, "names no concept"),
        (["car"], "names no concept"),
        ({"concepts": "car"}, "'concepts' is no array"),
        ({"concepts": []}, "'concepts' is 0 items and should be 1 to 10,000"),
        ({"concepts": [{"kind": "style"}]}, r"'concepts\[0\].name' is missing"),
        ({"concepts": [{"name": "a", "synonyms": None}]}, r"'concepts\[0\].synonyms' is no array"),
        ({"concepts": [{"name": "a"}], "fingerprint": "sd"}, "'fingerprint' is no object"),
    ],
)
def test_from_dict_names_what_is_damaged(content, message):
    with pytest.raises(ErasureError, match=message):
        EraserConfig.from_dict(content)


def test_config_without_concepts_is_refused():
    with pytest.raises(ErasureError, match="at least one concept"):
        EraserConfig(())
