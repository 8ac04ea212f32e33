"""The schema of `erasure_config.json`: one table, checked on loading and shipped as JSON Schema."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from diffusers_erase.concepts import Kind
from diffusers_erase.errors import ErasureError


BYTES = 2**20
"""Largest size of an `erasure_config.json`."""
DEPTH = 16
"""Deepest nesting of its lists and objects."""

LARGEST = 1e300
"""Largest number; the double of a float may be infinite."""

_UNSHOWN = r"\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069"
_ONE_LINE = rf"^[^{_UNSHOWN}]*$"
"""One line of text without control characters and changes of direction."""


def _text(length: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": length, "pattern": _ONE_LINE, **more}


def _list(item: dict[str, Any], length: int, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "maxItems": length, **more}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


_NAME = {**_text(1_000), "pattern": rf"^[^{_UNSHOWN}]*[^\s{_UNSHOWN}][^{_UNSHOWN}]*$"}
"""One line that is not blank."""
_COUNT = {"type": ["integer", "null"], "minimum": 0, "maximum": 2**53}
_SCORE = {"type": ["number", "null"]}

_CONCEPT = {
    **_object(
        name=_NAME,
        kind={"type": "string", "enum": [*get_args(Kind)]},
        synonyms=_list(_NAME, 10_000),
        target={**_text(1_000), "type": ["string", "null"]},
        choice=_text(100),
        scores={"type": "object", "additionalProperties": _SCORE},
        best={"type": ["string", "null"], "enum": ["lowest", "highest", None]},
    ),
    "required": ["name"],
}

_TEXT_ENCODER = {
    **_object(prompt=_text(1_000), state=_list({"type": "number"}, 64, minItems=1)),
    "required": ["prompt", "state"],
}

FIELDS: dict[str, dict[str, Any]] = {
    "format": {"type": "string", "maxLength": 20, "pattern": r"^1\.[0-9]+$"},
    "concepts": _list(_CONCEPT, 10_000, minItems=1),
    "recipe": _text(200),
    "parameters": {"type": "object"},
    "base_model": _text(1_000),
    "fingerprint": _object(
        denoiser=_text(200),
        text_width=_COUNT,
        cross_attention_layers=_COUNT,
        cross_attention_parameters=_COUNT,
        text=_TEXT_ENCODER,
    ),
    "rank": {"type": "integer", "minimum": 0, "maximum": 100_000},
    "payloads": _list(_text(100), 20),
    "dtype": {"type": "string", "enum": ["float32", "float16", "bfloat16"]},
    "results": {"type": "object"},
    "versions": {"type": "object", "additionalProperties": _text(200)},
}
"""Key -> JSON Schema, in the keywords that `_problem` knows."""


def schema() -> dict[str, Any]:
    """JSON Schema of `erasure_config.json`, format 1.x; other keys are a newer version's."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "erasure_config.json",
        "description": "What an eraser erases, to what, in which model, and how it was made.",
        "type": "object",
        "properties": FIELDS,
        "required": ["concepts"],
    }


def problem_of(content: dict[str, Any]) -> str | None:
    """The first place where a config differs from the schema, in words; None if there is none."""
    return _problem(content, {"type": "object", "properties": FIELDS}, "")


def read_json(text: str, source: str | Path) -> Any:
    """Parse JSON of bounded size and depth, with finite numbers and encodable text.

    Raises:
        ErasureError: it is broken, or larger or deeper than any eraser's.
    """
    if len(text) > BYTES:
        raise ErasureError(f"'{source}' is broken: {len(text):,} characters are too many.")
    try:
        content = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ErasureError(f"'{source}' is broken: it is nested without end.") from None
    except ValueError as error:
        raise ErasureError(f"'{source}' is broken: {error}.") from error
    for depth, value in _all(content, 0):
        if depth > DEPTH:
            raise ErasureError(f"'{source}' is broken: it is nested deeper than {DEPTH} levels.")
        if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
            raise ErasureError(f"'{source}' is broken: it holds a number beyond any float.")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise ErasureError(f"'{source}' is broken: it holds half of a character.")
    return content


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}


def _problem(value: Any, wanted: Mapping[str, Any], place: str) -> str | None:
    types = [wanted["type"]] if isinstance(wanted["type"], str) else wanted["type"]
    if not any(isinstance(value, _TYPES[name]) for name in types) or isinstance(value, bool):
        return f"'{place}' is no {' or '.join(types)}"
    if "enum" in wanted and value not in wanted["enum"]:
        return f"'{place}' is none of {', '.join(map(str, wanted['enum']))}"
    if isinstance(value, dict):
        return _problem_of_object(value, wanted, place)
    size: Any = value
    low, high, unit = "minimum", "maximum", ""
    if isinstance(value, str):
        size, low, high, unit = len(value), "minLength", "maxLength", " characters"
    elif isinstance(value, list | tuple):
        size, low, high, unit = len(value), "minItems", "maxItems", " items"
    if size is not None and not wanted.get(low, size) <= size <= wanted.get(high, size):
        allowed = f"{wanted.get(low, 0):,} to {wanted[high]:,}"
        return f"'{place}' is {size:,}{unit} and should be {allowed}"
    pattern = wanted.get("pattern", "").replace(
        "$", r"\Z"
    )  # Python's `$` allows a newline after it
    if isinstance(value, str) and not re.search(pattern, value):
        return f"'{place}' has characters that have no place there, or too few"
    if isinstance(value, list | tuple):
        each = (_problem(x, wanted["items"], f"{place}[{k}]") for k, x in enumerate(value))
        return next(filter(None, each), None)
    return None


def _problem_of_object(value: dict[str, Any], wanted: Mapping[str, Any], place: str) -> str | None:
    inside = f"{place}." if place else ""
    for name in wanted.get("required", ()):
        if name not in value:
            return f"'{inside}{name}' is missing"
    for name, inner in value.items():
        known = wanted.get("properties", {}).get(name) or wanted.get("additionalProperties")
        problem = _problem(inner, known, f"{inside}{name}") if known else None
        if problem:
            return problem
    return None


def _all(value: Any, depth: int) -> Iterable[tuple[int, Any]]:
    """Every value and key with its depth, without recursion."""
    waiting = [(depth, value)]
    while waiting:
        depth, value = waiting.pop()
        yield depth, value
        if isinstance(value, dict):
            waiting += [(depth + 1, inner) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            waiting += [(depth + 1, inner) for inner in value]


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
