"""What a detector is: pictures in, one verdict each out, and what the base lets it see."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from diffusers_erase.errors import ErasureError, first_line
from diffusers_erase.evaluation.metrics import Rate


MEASURABLE = 0.5
"""Where the base is seen to draw a concept less often than this, its erasure cannot be measured."""


class Verdict(Protocol):
    """What was seen in one picture."""

    @property
    def label(self) -> str:
        """The most likely concept."""
        ...

    @property
    def score(self) -> float:
        """Its probability, 0 .. 1."""
        ...

    @property
    def valid(self) -> bool:
        """False where there is nothing that could be judged: noise, a blank or ruined picture."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """Everything that is there; a classifier's most likely class alone."""
        ...

    @property
    def ranked(self) -> Sequence[str]:
        """The most likely concepts, first the best; what top-5 rates are counted on."""
        ...


class Detector(Protocol):
    """Anything that can be called with pictures; the playground's judge is one."""

    def __call__(self, images: Any) -> Sequence[Verdict]:
        """One verdict per picture."""
        ...


@dataclass(frozen=True)
class Detection:
    """A plain verdict."""

    label: str
    score: float
    valid: bool = True
    labels: tuple[str, ...] = ()
    """What is there; the label alone if it is valid and nothing is said."""
    ranked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.labels and self.valid:
            object.__setattr__(self, "labels", (self.label,))
        if not self.ranked:
            object.__setattr__(self, "ranked", (self.label,))


@dataclass(frozen=True)
class FromFunction:
    """A detector out of a function of one picture: a label, or a label and its score.

    None where the picture shows nothing that could be judged.
    """

    function: Callable[[Image.Image], str | tuple[str, float] | None]
    name: str = "function"

    @property
    def info(self) -> Mapping[str, Any]:
        """What is told of it beside its verdicts."""
        return {"name": self.name}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection]:
        """One verdict per picture."""
        found = []
        for image in images:
            said = self.function(image)
            if said is None:
                found.append(Detection("", 0.0, valid=False))
            else:
                label, score = (said, 1.0) if isinstance(said, str) else said
                found.append(Detection(label, score))
        return found


def is_seen(wanted: Iterable[str], labels: Iterable[str]) -> bool:
    """Whether one of the wanted labels is there, in whatever case it is written."""
    return not {w.casefold() for w in wanted}.isdisjoint(label.casefold() for label in labels)


def looked(detector: Detector, pictures: Sequence[Image.Image]) -> list[Verdict]:
    """The detector's verdicts, one for each picture and each of them a number.

    Raises:
        ErasureError: it fails, says more or less than one thing per picture, or a score that is
            none.
    """
    try:
        found = list(detector(pictures))
    except ErasureError:
        raise
    except Exception as error:
        raise ErasureError(
            f"The detector {_name(detector)} failed on {len(pictures)} pictures: "
            f"{type(error).__name__}: {first_line(error)}."
        ) from error
    if len(found) != len(pictures):
        raise ErasureError(
            f"The detector {_name(detector)} was shown {len(pictures)} pictures and said "
            f"{len(found)} things; it must say one of each."
        )
    for verdict in found:
        if not (math.isfinite(verdict.score) and 0 <= verdict.score <= 1):
            raise ErasureError(
                f"The detector {_name(detector)} says '{verdict.label}' with a score of "
                f"{verdict.score}; a score is a share from 0 to 1."
            )
    return found


def told_of(detector: Detector) -> dict[str, Any]:
    """Name, version, classes, threshold: whatever the detector says of itself in `info`."""
    return {"name": _name(detector), **getattr(detector, "info", {})}


def measurable(base: Rate) -> bool:
    """Whether the base draws, and the detector sees, what is asked for often enough."""
    return base.n > 0 and base.value >= MEASURABLE


def _name(detector: Detector) -> str:
    return type(detector).__name__
