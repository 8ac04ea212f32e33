"""What a detector is: pictures in, one verdict each out."""

from collections.abc import Sequence
from typing import Any, Protocol


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


class Detector(Protocol):
    """Anything that can be called with pictures; the playground's judge is one."""

    def __call__(self, images: Any) -> Sequence[Verdict]:
        """One verdict per picture."""
        ...
