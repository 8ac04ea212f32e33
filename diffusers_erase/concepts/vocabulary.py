"""Words of other concepts: candidates for targets, and what is to be preserved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers_erase.concepts.concept import Concept
from diffusers_erase.errors import ErasureError


@dataclass(frozen=True)
class Vocabulary:
    """Names of other concepts: candidates for targets, and what is to be preserved."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.words, str):
            raise ErasureError("A vocabulary is a sequence of words, not one string.")
        for word in self.words:
            if not isinstance(word, str):
                raise ErasureError(f"The words of a vocabulary are strings; got {word!r}.")
        if not all(word.strip() for word in self.words):
            raise ErasureError("One of the words of the vocabulary is empty; leave it out.")

    @classmethod
    def read(cls, path: str | Path) -> "Vocabulary":
        """Read one word or phrase per line; empty lines and lines with `#` first are skipped."""
        try:
            if not Path(path).is_file():  # also for devices, which may never end
                raise FileNotFoundError("there is no such file")
            lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ErasureError(f"Cannot read the vocabulary '{path}': {error}.") from error
        words = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        if not words:
            raise ErasureError(f"The vocabulary '{path}' holds no words; write one a line.")
        return cls(words)

    def others(self, erased: Sequence[Concept]) -> tuple[str, ...]:
        """The words that are no name of an erased concept; these are preserved."""
        return tuple(w for w in self.words if not any(c.is_named_by(w) for c in erased))
