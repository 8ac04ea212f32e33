"""`erasure_config.json`: what it may hold, checked by one table that is shipped as JSON Schema."""

import json
import string
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffusers_erase
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.eraser.schema import BYTES, DEPTH, FIELDS, problem_of, read_json, schema
from diffusers_erase.errors import ErasureError


SHIPPED = Path(diffusers_erase.__file__).parent / "eraser" / "erasure_config.schema.json"


def test_shipped_schema_is_the_one_that_is_checked():
    assert json.loads(SHIPPED.read_text()) == json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(schema())
    assert set(FIELDS) == {*EraserConfig((ErasedConcept("car"),)).to_dict()}


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200_000) | st.just(0.5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
shown = st.text(string.ascii_letters + " äß", min_size=1, max_size=12)
named = shown.filter(str.strip)
concept = {
    "kind": st.sampled_from(["object", "style", "person", "attribute"]),
    "synonyms": st.lists(named, max_size=3),
    "target": st.none() | shown,
    "scores": st.dictionaries(shown, st.none() | st.just(0.5) | st.integers(), max_size=2),
    "best": st.sampled_from(["lowest", "highest", None]),
}
text_encoder = st.fixed_dictionaries({"prompt": shown, "state": st.just([0.5, 1])})
fitting = {
    "format": st.sampled_from(["1.0", "1.7"]),
    "rank": st.integers(0, 99),
    "payloads": st.just(["lora"]),
    "dtype": st.sampled_from(["float32", "float16"]),
    "fingerprint": st.fixed_dictionaries({}, optional={"text": text_encoder}),
    "versions": st.dictionaries(shown, shown, max_size=2),
}
concepts = st.lists(
    st.fixed_dictionaries({"name": named}, optional=concept), min_size=1, max_size=2
)
contents = st.fixed_dictionaries({"concepts": concepts}, optional=fitting)


@settings(max_examples=300, deadline=None)
@given(contents, st.data())
def test_problem_of_accepts_what_the_shipped_schema_accepts(content, data):
    for _ in range(data.draw(st.integers(0, 2))):
        inside = data.draw(
            st.sampled_from([content, *content["concepts"], content.get("fingerprint") or content])
        )
        key = data.draw(st.sampled_from([*FIELDS, *concept, "name", "text", "text_width"]))
        if inside is not content or key != "concepts":
            inside[key] = data.draw(anything)
    accepted = jsonschema.Draft202012Validator(schema()).is_valid(content)
    assert (problem_of(content) is None) == accepted


@settings(max_examples=100, deadline=None)
@given(contents)
def test_config_comes_back_as_it_was(content):
    config = EraserConfig.from_dict(content)
    assert EraserConfig.from_dict(read_json(json.dumps(config.to_dict()), "x")) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"concept": ', "is broken: Expecting value"),
        ('{"concept": NaN}', "NaN is no number"),
        ('{"concept": 1e999}', "number beyond any float"),
        ("[" * 100_000, "nested without end"),
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), "nested deeper than"),
        ('"' + "x" * BYTES + '"', "characters are too many"),
        (r'{"concept": "\ud800"}', "half of a character"),
        ('{"rank": ' + "9" * 5000 + "}", "is broken"),
        ('{"rank": ' + "9" * 400 + "}", "number beyond any float"),
        ('{"rank": -1e301}', "number beyond any float"),
    ],
)
def test_read_json_refuses_what_no_config_holds(text, message):
    with pytest.raises(ErasureError, match=message):
        read_json(text, "x.json")


CAR = {"name": "car"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": "2.0"}, "of format '2.0'.*Update diffusers_erase"),
        ({"format": "one"}, "'format' has characters that have no place there"),
        ({"concepts": [{"name": "car\x1b[2J"}]}, "characters that have no place there"),
        ({"concepts": [{"name": "\u202erac"}]}, "characters that have no place there"),
        ({"concepts": [{"name": "car\n"}]}, "characters that have no place there"),
        ({"concepts": [{"name": ""}]}, "or too few"),
        ({"concepts": [{"name": "  "}]}, "or too few"),
        ({"concepts": [CAR, {"name": 3}]}, r"'concepts\[1\].name' is no string"),
        ({"concepts": [{**CAR, "target": "x" * 9_999}]}, "is 9,999 characters and should be 0 to"),
        ({"concepts": [{**CAR, "kind": "idea"}]}, "is none of object, style"),
        ({"concepts": [{**CAR, "best": "most"}]}, "is none of lowest, highest, None"),
        ({"concepts": [{**CAR, "scores": {"bus": "near"}}]}, "scores.bus' is no number or null"),
        ({"concepts": [{**CAR, "scores": {"bus": True}}]}, "scores.bus' is no number or null"),
        ({"rank": 10**9}, "'rank' is 1,000,000,000 and should be 0 to 100,000"),
        ({"rank": True}, "'rank' is no integer"),
        ({"versions": {"torch": 2}}, "'versions.torch' is no string"),
        ({"fingerprint": {"text_width": -1}}, "'fingerprint.text_width' is -1"),
    ],
)
def test_config_with_a_field_against_the_schema_is_refused_by_name(content, message):
    with pytest.raises(ErasureError, match=message):
        EraserConfig.from_dict({"concepts": [CAR], **content})


@pytest.mark.parametrize(
    "text",
    [
        None,
        "car",
        [],
        [1.0],
        0,
        True,
        {},
        {"prompt": "car"},
        {"state": [1.0]},
        {"prompt": None, "state": [1.0]},
        {"prompt": 3, "state": [1.0]},
        {"prompt": ["car"], "state": [1.0]},
        {"prompt": "car", "state": None},
        {"prompt": "car", "state": 1.0},
        {"prompt": "car", "state": "abc"},
        {"prompt": "car", "state": []},
        {"prompt": "car", "state": {"0": 1.0}},
        {"prompt": "car", "state": ["a"]},
        {"prompt": "car", "state": [None]},
        {"prompt": "car", "state": [[1.0], [2.0]]},
        {"prompt": "car", "state": [True]},
        {"prompt": "car", "state": [0.5] * 65},
        {"prompt": "x" * 5_000, "state": [0.5]},
        {"prompt": "a\nb", "state": [0.5]},
    ],
)
def test_malformed_fingerprint_of_the_text_encoder_is_refused(text):
    with pytest.raises(ErasureError, match=r"is damaged: 'fingerprint\.text"):
        EraserConfig.from_dict({"concepts": [CAR], "fingerprint": {"text": text}})
