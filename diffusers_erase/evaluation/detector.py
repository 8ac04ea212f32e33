"""The detector protocol: pictures in, one verdict per picture out."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from diffusers_erase.errors import ErasureError, first_line
from diffusers_erase.evaluation.metrics import Rate


MEASURABLE = 0.5
"""The least rate at which the base model must show a concept for its erasure to be measurable."""


class Verdict(Protocol):
    """The result of a detector for one picture."""

    @property
    def label(self) -> str:
        """The most likely concept."""
        ...

    @property
    def score(self) -> float:
        """The probability of `label`, 0 .. 1."""
        ...

    @property
    def valid(self) -> bool:
        """False where nothing can be judged: noise, a blank or a ruined picture."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """All concepts the picture shows; for a classifier its most likely class alone."""
        ...

    @property
    def ranked(self) -> Sequence[str]:
        """The most likely concepts, best first; top-5 rates are counted on them."""
        ...


class Detector(Protocol):
    """A callable on pictures that describes itself; the playground's judge is one."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Plain values that determine the verdicts: name, version, classes, threshold, weights.

        Stored verdicts are reused for every detector with an equal `info`.
        """
        ...

    def __call__(self, pictures: Any, /) -> Sequence[Verdict]:
        """One verdict per picture."""
        ...


@dataclass(frozen=True)
class Detection:
    """A verdict as plain values."""

    label: str
    score: float
    valid: bool = True
    labels: tuple[str, ...] = ()
    """All concepts the picture shows; if empty, the label alone where the verdict is valid."""
    ranked: tuple[str, ...] = ()
    """The most likely concepts, best first; if empty, the label alone."""

    def __post_init__(self) -> None:
        if not self.labels and self.valid:
            object.__setattr__(self, "labels", (self.label,))
        if not self.ranked:
            object.__setattr__(self, "ranked", (self.label,))


@dataclass(frozen=True)
class FromFunction:
    """A detector made of a function of one picture, which returns a label or (label, score).

    The function returns None where the picture shows nothing that can be judged.
    """

    function: Callable[[Image.Image], str | tuple[str, float] | None]
    name: str = ""
    """Identifies the function: stored verdicts are reused for the same name. Without a name
    nothing can be stored."""

    @property
    def info(self) -> Mapping[str, Any]:
        """The name, if there is one."""
        return {"name": self.name} if self.name else {}

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Detection]:
        """One verdict per picture."""
        verdicts = []
        for picture in pictures:
            result = self.function(picture)
            if result is None:
                verdicts.append(Detection("", 0.0, valid=False))
            else:
                label, score = (result, 1.0) if isinstance(result, str) else result
                verdicts.append(Detection(label, score))
        return verdicts


def shows_any(labels: Iterable[str], wanted: Iterable[str]) -> bool:
    """True if one of the wanted labels is among the labels, in upper or lower case."""
    return not {w.casefold() for w in wanted}.isdisjoint(label.casefold() for label in labels)


def verdicts_of(detector: Detector, pictures: Sequence[Image.Image]) -> list[Verdict]:
    """The detector's verdicts, checked: one per picture, each with a score in 0 .. 1.

    Raises:
        ErasureError: the detector fails, returns another number of verdicts than of pictures, or a
            score outside 0 .. 1.
    """
    name = type(detector).__name__
    try:
        verdicts = list(detector(pictures))
    except ErasureError:
        raise
    except Exception as error:
        raise ErasureError(
            f"The detector {name} failed on {len(pictures)} pictures: "
            f"{type(error).__name__}: {first_line(error)}."
        ) from error
    if len(verdicts) != len(pictures):
        raise ErasureError(
            f"The detector {name} returned {len(verdicts)} verdicts for {len(pictures)} pictures; "
            "it must return one for each."
        )
    for verdict in verdicts:
        if not (math.isfinite(verdict.score) and 0 <= verdict.score <= 1):
            raise ErasureError(
                f"The detector {name} returned '{verdict.label}' with a score of {verdict.score}; "
                "a score must lie in 0 .. 1."
            )
    return verdicts


def info_of(detector: Detector) -> dict[str, Any]:
    """The detector's `info`; at least the name of its class where it has none."""
    return {"name": type(detector).__name__, **getattr(detector, "info", {})}


def require_info(detector: Detector, use: str) -> None:
    """Raise if the detector has no `info` of plain values, by which stored verdicts are recognised.

    Of other values, such as tensors, only a part would be compared.
    """
    info = getattr(detector, "info", None)
    if not info or not isinstance(info, Mapping):
        raise ErasureError(
            f"{use} needs a detector with `info`, and {type(detector).__name__} has none; give it "
            "an `info` with its name, version and threshold, or leave out the work folder."
        )
    try:
        json.dumps(dict(info))
    except (TypeError, ValueError) as error:
        raise ErasureError(
            f"{use} needs a detector whose `info` consists of plain values; that of "
            f"{type(detector).__name__} does not: {first_line(error)}."
        ) from error


def measurable(base: Rate) -> bool:
    """True if the base model shows the concept often enough to measure its erasure."""
    return base.n > 0 and base.value >= MEASURABLE
