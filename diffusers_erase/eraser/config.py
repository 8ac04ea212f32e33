"""What an eraser erases, to what, in which model, and how it was made."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from warnings import warn

from diffusers_erase.eraser.schema import problem_of
from diffusers_erase.errors import ErasureError


CONFIG_NAME = "erasure_config.json"

FORMAT = "1.0"
"""Of an eraser's repository: docs/format.md."""

PAYLOADS = ("lora", "text_map")
"""What an eraser's repository may hold, as far as this version knows."""


@dataclass(frozen=True)
class EraserConfig:
    """What an eraser erases, to what, in which model, how it was made: `erasure_config.json`.

    What each of them may hold is in `schema.FIELDS`, and in `erasure_config.schema.json`.
    """

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
    dtype: str = "float32"
    """Of the LoRA's numbers on disk."""
    results: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Keys that a newer version wrote; kept, and written back."""
    format: str = FORMAT

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its concepts, with their synonyms."""
        return (*self.concept.split(", "), *self.synonyms)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is no number, such as nan, is None."""
        known = asdict(self)
        text = json.dumps({**known.pop("unknown"), **known})
        plain: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
        return plain

    @classmethod
    def from_dict(cls, content: Any) -> "EraserConfig":
        """The inverse of `to_dict`; unknown keys are kept and warned about.

        Raises:
            ErasureError: it was not written by diffusers_erase, is damaged, or is of a format or
                holds a payload that this version does not know.
        """
        if not isinstance(content, dict) or not isinstance(content.get("concept"), str):
            raise ErasureError(
                f"{CONFIG_NAME} names no concept; it was not written by diffusers_erase."
            )
        _check_format(content.get("format", FORMAT), content.get("payloads", ()))
        problem = problem_of(content)
        if problem:
            raise ErasureError(f"{CONFIG_NAME} is damaged: {problem}.")
        names = {f.name for f in fields(cls)} - {"unknown"}
        known = {name: value for name, value in content.items() if name in names}
        unknown = {name: value for name, value in content.items() if name not in names}
        if unknown:
            warn(
                f"{CONFIG_NAME} was written by another version; kept but not understood: "
                f"{', '.join(map(repr, unknown))}.",
                stacklevel=3,
            )
        for name in ("synonyms", "payloads"):
            known |= {name: tuple(known[name])} if name in known else {}
        return cls(**known, unknown=unknown)


def _check_format(written: Any, payloads: Any) -> None:
    """Refuse by name what only a newer version can read: it is never left out in silence."""
    ours, theirs = FORMAT.split(".")[0], str(written).split(".")[0]
    if theirs.isascii() and theirs.isdigit() and int(theirs[:9]) > int(ours):
        raise ErasureError(
            f"This eraser is of format {str(written)[:20]!r}; this version of diffusers_erase "
            f"reads {ours}.x. Update diffusers_erase."
        )
    for payload in payloads if isinstance(payloads, list | tuple) else ():
        if isinstance(payload, str) and payload not in PAYLOADS:
            raise ErasureError(
                f"This eraser holds a payload {payload[:100]!r} that this version of "
                f"diffusers_erase does not know ({', '.join(PAYLOADS)}); without it the eraser "
                "would not erase what it says. Update diffusers_erase."
            )


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
