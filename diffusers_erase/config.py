"""What an eraser erases, to what, in which model, and how it was made."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from warnings import warn

from diffusers_erase.errors import ErasureError


CONFIG_NAME = "erasure_config.json"

_PLAIN_TYPES: dict[str, type] = {
    "synonyms": list,
    "parameters": dict,
    "fingerprint": dict,
    "results": dict,
    "versions": dict,
    "rank": int,
    "payloads": list,
}


@dataclass(frozen=True)
class EraserConfig:
    """What an eraser erases, to what, in which model, how it was made: `erasure_config.json`."""

    concept: str
    kind: str = "object"
    synonyms: tuple[str, ...] = ()
    target: str | None = None
    """What the concept is answered as; None for the same prompt without it."""
    recipe: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Every number the recipe ran with."""
    base_model: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """Class, text width and cross-attention size of the denoiser it was made for."""
    rank: int = 0
    payloads: tuple[str, ...] = ("lora",)
    """What there is of `lora` and `text_map`."""
    results: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Keys that a newer version wrote; kept, and written back."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its concepts, with their synonyms."""
        return (*self.concept.split(", "), *self.synonyms)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        known = asdict(self)
        plain: dict[str, Any] = json.loads(json.dumps({**known.pop("unknown"), **known}))
        return plain

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EraserConfig":
        """The inverse of `to_dict`; unknown keys are kept and warned about."""
        if not isinstance(content, Mapping) or not isinstance(content.get("concept"), str):
            raise ErasureError(
                f"{CONFIG_NAME} names no concept; it was not written by diffusers_erase."
            )
        wrong = [
            name
            for name, kind in _PLAIN_TYPES.items()
            if not isinstance(content.get(name, kind()), kind)
        ]
        if wrong:
            raise ErasureError(f"{CONFIG_NAME} is damaged: '{wrong[0]}' is not what it should be.")
        names = {f.name for f in fields(cls)} - {"unknown"}
        known = {name: value for name, value in content.items() if name in names}
        unknown = {name: value for name, value in content.items() if name not in names}
        if unknown:
            warn(
                f"{CONFIG_NAME} was written by another version; kept but not understood: "
                f"{', '.join(unknown)}.",
                stacklevel=3,
            )
        for name in ("synonyms", "payloads"):
            known |= {name: tuple(known[name])} if name in known else {}
        return cls(**known, unknown=unknown)


@dataclass(frozen=True)
class Choice:
    """What one concept is answered as, and the rivals with their scores."""

    concept: str
    target: str | None
    how: str
    scores: dict[str, float] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """The versions an eraser is made with."""
    found = {}
    for package in ("diffusers-erase", "torch", "diffusers", "transformers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
