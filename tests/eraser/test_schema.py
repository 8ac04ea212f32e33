"""`erasure_config.json`: what it may hold, checked by one table that is shipped as JSON Schema."""

import json
import string
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffusers_erase
from diffusers_erase.eraser.config import EraserConfig
from diffusers_erase.eraser.schema import BYTES, DEPTH, FIELDS, problem_of, read_json, schema
from diffusers_erase.errors import ErasureError


SHIPPED = Path(diffusers_erase.__file__).parent / "eraser" / "erasure_config.schema.json"


def test_the_schema_that_is_shipped_is_the_one_that_is_checked():
    assert json.loads(SHIPPED.read_text()) == json.loads(json.dumps(schema()))
    jsonschema.Draft202012Validator.check_schema(schema())
    assert set(FIELDS) == {*EraserConfig("car").to_dict()}


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200_000) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
shown = st.text(string.ascii_letters + " äß", min_size=1, max_size=12)
fitting = {
    "format": st.sampled_from(["1.0", "1.7"]),
    "kind": st.sampled_from(["object", "style", "person", "attribute"]),
    "synonyms": st.lists(shown, max_size=3),
    "target": st.none() | shown,
    "rank": st.integers(0, 99),
    "payloads": st.just(["lora"]),
    "dtype": st.sampled_from(["float32", "float16"]),
}


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries({"concept": shown}, optional=fitting),
    st.dictionaries(st.sampled_from([*FIELDS]), anything, max_size=2),
)
def test_what_is_accepted_is_what_the_schema_accepts(content, changes):
    content |= changes
    accepted = jsonschema.Draft202012Validator(schema()).is_valid(content)
    assert (problem_of(content) is None and "concept" in content) == accepted


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({"concept": shown}, optional=fitting))
def test_a_config_comes_back_as_it_was(content):
    config = EraserConfig.from_dict(content)
    assert EraserConfig.from_dict(read_json(json.dumps(config.to_dict()), "x")) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"concept": ', "is broken: Expecting value"),
        ('{"concept": NaN}', "NaN is no number"),
        ('{"concept": 1e999}', "not finite"),
        ("[" * 100_000, "nested without end"),
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), "nested deeper than"),
        ('"' + "x" * BYTES + '"', "characters are too many"),
        (r'{"concept": "\ud800"}', "half of a character"),
        ('{"rank": ' + "9" * 5000 + "}", "is broken"),
    ],
)
def test_json_that_no_eraser_has_is_refused(text, message):
    with pytest.raises(ErasureError, match=message):
        read_json(text, "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": "2.0"}, "of format '2.0'.*Update diffusers_erase"),
        ({"payloads": ["lora", "gate"]}, "payload 'gate' that this version.*does not know"),
        ({"format": "one"}, "'format' is not what it should be"),
        ({"concept": "car\x1b[2J"}, "characters that have no place there"),
        ({"concept": "\u202erac"}, "characters that have no place there"),
        ({"concept": ""}, "0 characters"),
        ({"target": "x" * 100_000}, "100000 characters|100,000 characters"),
        ({"rank": 10**9}, "beyond 0 to"),
        ({"rank": True}, "no integer"),
        ({"kind": "idea"}, "none of object, style"),
        ({"synonyms": ["a", 3]}, "no string"),
    ],
)
def test_a_config_that_cannot_be_trusted_is_refused_by_name(content, message):
    with pytest.raises(ErasureError, match=message):
        EraserConfig.from_dict({"concept": "car", **content})


def test_what_is_no_number_is_none_on_disk():
    config = EraserConfig("car", results={"loss": float("nan"), "of": [float("inf"), 1.5]})
    assert config.to_dict()["results"] == {"loss": None, "of": [None, 1.5]}
