"""What `erasure_config.json` may hold: one table, checked on loading and shipped as JSON Schema."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers_erase.errors import ErasureError


BYTES = 2**20
"""Of an `erasure_config.json`, at most."""
DEPTH = 16
"""Of its lists and objects in one another, at most."""

_SHOWN = r"^[^\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*$"
"""Text that stays in its line and runs in one direction, in a terminal and on a card."""


def _text(length: int, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": length, "pattern": _SHOWN, **more}


def _list(item: dict[str, Any], length: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "maxItems": length}


_OBJECT = {"type": "object"}

FIELDS: dict[str, dict[str, Any]] = {
    "format": {"type": "string", "maxLength": 20, "pattern": r"^1\.[0-9]+$"},
    "concept": _text(65_536, minLength=1),
    "kind": {"type": "string", "enum": ["object", "style", "person", "attribute"]},
    "synonyms": _list(_text(1_000), 10_000),
    "target": {**_text(65_536), "type": ["string", "null"]},
    "recipe": _text(200),
    "parameters": _OBJECT,
    "base_model": _text(1_000),
    "fingerprint": _OBJECT,
    "rank": {"type": "integer", "minimum": 0, "maximum": 100_000},
    "payloads": _list(_text(100), 20),
    "dtype": {"type": "string", "enum": ["float32", "float16", "bfloat16"]},
    "results": _OBJECT,
    "versions": _OBJECT,
}
"""Key -> JSON Schema, in the keywords that `problem_of` knows."""


def schema() -> dict[str, Any]:
    """JSON Schema of `erasure_config.json`, format 1.x; other keys are a newer version's."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "erasure_config.json",
        "description": "What an eraser erases, to what, in which model, and how it was made.",
        "type": "object",
        "properties": FIELDS,
        "required": ["concept"],
    }


def problem_of(content: dict[str, Any]) -> str | None:
    """What is wrong with a config's content, in words; None where nothing is."""
    for name, value in content.items():
        problem = _problem(value, FIELDS[name]) if name in FIELDS else None
        if problem:
            return f"{name!r} is not what it should be: {problem}"
    return None


def read_json(text: str, source: str | Path) -> Any:
    """JSON of a stranger: bounded, finite, and nothing in it that cannot be written again.

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
        if isinstance(value, float) and not math.isfinite(value):
            raise ErasureError(f"'{source}' is broken: it holds a number that is not finite.")
        if isinstance(value, str) and not _encodable(value):
            raise ErasureError(f"'{source}' is broken: it holds half of a character.")
    return content


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}


def _problem(value: Any, wanted: dict[str, Any]) -> str | None:
    types = [wanted["type"]] if isinstance(wanted["type"], str) else wanted["type"]
    if not any(isinstance(value, _TYPES[name]) for name in types) or isinstance(value, bool):
        return f"no {' or '.join(types)}"
    if isinstance(value, str):
        return _problem_of_text(value, wanted)
    if isinstance(value, int) and not wanted["minimum"] <= value <= wanted["maximum"]:
        return f"beyond {wanted['minimum']:,} to {wanted['maximum']:,}"
    if isinstance(value, list | tuple):
        if len(value) > wanted["maxItems"]:
            return f"more than {wanted['maxItems']:,} items"
        return next(filter(None, (_problem(item, wanted["items"]) for item in value)), None)
    return None


def _problem_of_text(value: str, wanted: dict[str, Any]) -> str | None:
    if not wanted.get("minLength", 0) <= len(value) <= wanted.get("maxLength", len(value)):
        return f"{len(value):,} characters"
    if "enum" in wanted and value not in wanted["enum"]:
        return f"none of {', '.join(wanted['enum'])}"
    if "pattern" in wanted and not re.search(wanted["pattern"].replace("$", r"\Z"), value):
        return "characters that have no place there"
    return None


def _all(value: Any, depth: int) -> Iterable[tuple[int, Any]]:
    """Every value, key included, with its depth; no recursion, for there may be much of it."""
    waiting = [(depth, value)]
    while waiting:
        depth, value = waiting.pop()
        yield depth, value
        if isinstance(value, dict):
            waiting += [(depth + 1, inner) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            waiting += [(depth + 1, inner) for inner in value]


def _encodable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
