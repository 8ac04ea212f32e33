"""The config of an eraser: concepts, targets, base model, recipe and results."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal
from warnings import warn

from diffusers_erase.concepts import Concept, Kind
from diffusers_erase.eraser.schema import problem_of
from diffusers_erase.errors import ErasureError, shown


CONFIG_NAME = "erasure_config.json"

FORMAT = "1.0"
"""Of an eraser's repository: docs/format.md."""


@dataclass(frozen=True)
class ErasedConcept:
    """A concept that an eraser erases, and the target that replaces it."""

    name: str
    kind: Kind = "object"
    synonyms: tuple[str, ...] = ()
    target: str | None = None
    """The words in the concept's place; None for the same prompt without the concept."""
    choice: str = "given"
    """The method that chose the target."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Candidate target -> score, by that method."""
    best: Literal["lowest", "highest"] | None = None
    """Which score is the best one; None if the scores are no ranking."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Keys that a newer version wrote; kept, and written back."""

    @classmethod
    def of(cls, concept: Concept, target: str | None, **chosen: Any) -> "ErasedConcept":
        """The concept with its target; `chosen` may hold `choice`, `scores` and `best`."""
        return cls(concept.name, concept.kind, concept.synonyms, target, **chosen)

    @classmethod
    def left_out(cls, concept: Concept) -> "ErasedConcept":
        """The concept without a target; `choice` says that this is usual, or that none was left."""
        usual = concept.kind in ("style", "person")
        return cls.of(concept, None, choice="left out" if usual else "no candidate")

    @property
    def concept(self) -> Concept:
        """Name, kind and synonyms, from which prompts are written."""
        return Concept(self.name, self.kind, self.synonyms)

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """Candidates with their scores, the best first if there is a best one."""
        found = [(word, score) for word, score in self.scores.items() if score is not None]
        if self.best is not None:
            found.sort(key=lambda pair: pair[1], reverse=self.best == "highest")
        return found


@dataclass(frozen=True)
class EraserConfig:
    """The content of `erasure_config.json`; `schema.FIELDS` says what each field may hold."""

    concepts: tuple[ErasedConcept, ...]
    recipe: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Every number the recipe ran with."""
    base_model: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """Class, text width and cross-attention size of the denoiser it was made for."""
    rank: int = 0
    payloads: tuple[str, ...] = ("lora",)
    """Names of the weights that the eraser consists of: `lora`, `text_map` or both."""
    dtype: str = "float32"
    """Type of the LoRA's numbers on disk."""
    results: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Keys that a newer version wrote; kept, and written back."""
    format: str = FORMAT

    def __post_init__(self) -> None:
        if not self.concepts:
            raise ErasureError("An eraser erases at least one concept; none is named.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names and synonyms of all concepts."""
        return tuple(name for concept in self.concepts for name in concept.names)

    @property
    def title(self) -> str:
        """The concepts in words, for people: `cat`, `cat and dog`, `cat, dog and 7 more`."""
        *first, last = [concept.name for concept in self.concepts]
        if len(first) > 3:
            first, last = first[:3], f"{len(first) - 2} more"
        return f"{', '.join(first)} and {last}" if first else last

    def example_prompts(self, count: int) -> tuple[str, ...]:
        """`count` prompts about each concept."""
        return tuple(
            prompt.text for each in self.concepts for prompt in each.concept.example_prompts(count)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a number that is not finite becomes None."""
        known = asdict(self)
        known["concepts"] = [{**one.pop("unknown"), **one} for one in known["concepts"]]
        text = json.dumps({**known.pop("unknown"), **known})
        plain: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
        return plain

    @classmethod
    def from_dict(cls, content: Any) -> "EraserConfig":
        """The inverse of `to_dict`; unknown keys are kept and warned about.

        Raises:
            ErasureError: it was not written by diffusers_erase, is damaged, or is of a format that
                this version does not know.
        """
        if not isinstance(content, dict) or "concepts" not in content:
            raise ErasureError(
                f"{CONFIG_NAME} names no concept; it was not written by diffusers_erase."
            )
        _check_format(content.get("format", FORMAT))
        problem = problem_of(content)
        if problem:
            raise ErasureError(f"{CONFIG_NAME} is damaged: {problem}.")
        known = _split(cls, content)
        known["concepts"] = tuple(
            ErasedConcept(**_split(ErasedConcept, one)) for one in known["concepts"]
        )
        config = cls(**known)
        unknown = {*config.unknown}.union(*(concept.unknown for concept in config.concepts))
        if unknown:
            warn(
                f"{CONFIG_NAME} was written by another version; kept but not understood: "
                f"{shown(', '.join(map(repr, sorted(unknown))))}.",
                stacklevel=3,
            )
        return config


def _split(cls: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a dataclass from JSON; keys it does not know are in `unknown`."""
    names = {f.name for f in fields(cls)} - {"unknown"}
    plain = {k: tuple(x) if isinstance(x, list) else x for k, x in content.items() if k in names}
    return plain | {"unknown": {k: x for k, x in content.items() if k not in names}}


def _check_format(written: Any) -> None:
    """Raise, by its number, for a format that only a newer version can read."""
    ours, theirs = FORMAT.split(".")[0], str(written).split(".")[0]
    if theirs.isascii() and theirs.isdigit() and int(theirs[:9]) > int(ours):
        raise ErasureError(
            f"This eraser is of format {str(written)[:20]!r}; this version of diffusers_erase "
            f"reads {ours}.x. Update diffusers_erase."
        )


def versions() -> dict[str, str]:
    """The versions an eraser is made with."""
    found = {}
    for package in ("diffusers-erase", "torch", "diffusers", "transformers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
