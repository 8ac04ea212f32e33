"""What is to be erased: its names, the prompts it is met in, and those prompts without it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from diffusers_erase.errors import ErasureError


Kind = Literal["object", "style", "person", "attribute"]

_COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_PLACES = ("on the beach", "at night", "in the snow", "in a field")
_DOING = ("smiling", "at a desk", "giving a speech", "walking in a street", "as a child")
_MANNERS = ("close-up", "black and white", "painted", "detailed")
_SUBJECTS = ("house", "car", "cat", "dog", "church", "castle", "star", "fish", "flower", "clock")

TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "object": (
        "a photo of a {}",
        "a picture of a {}",
        "an image of a {}",
        "a {}",
        *(f"a photo of a {colour} {{}}" for colour in _COLOURS),
        *(f"a {colour} {{}}" for colour in _COLOURS),
        *(f"a {{}} {place}" for place in _PLACES),
        *(f"a photo of a {c} {{}} {p}" for c, p in zip(_COLOURS, _PLACES * 2, strict=True)),
    ),
    "style": (
        *(f"a painting of a {subject} in the style of {{}}" for subject in _SUBJECTS),
        *(f"a painting of a {c} {s} by {{}}" for c, s in zip(_COLOURS, _SUBJECTS, strict=False)),
        *(f"a {s} in the style of {{}} {p}" for s, p in zip(_SUBJECTS, _PLACES, strict=False)),
        *(f"an artwork of a {s} by {{}}" for s in _SUBJECTS[:4]),
        "a painting in the style of {}",
    ),
    "person": (
        "a photo of {}",
        "a portrait of {}",
        "a picture of {}",
        "{}",
        *(f"a photo of {{}} {doing}" for doing in _DOING),
        *(f"a {manner} portrait of {{}}" for manner in _MANNERS),
        *(f"{{}} {doing}, {manner}" for doing, manner in zip(_DOING, _MANNERS, strict=False)),
        *(f"a {manner} photo of {{}} {p}" for manner, p in zip(_MANNERS, _PLACES, strict=True)),
    ),
    "attribute": (
        *(f"a photo of a {{}} {subject}" for subject in _SUBJECTS),
        *(f"a {{}} {subject}" for subject in _SUBJECTS),
        *(f"a {{}} {s} {p}" for s, p in zip(_SUBJECTS, _PLACES, strict=False)),
        *(f"a picture of a {s} that is {{}}" for s in _SUBJECTS[:4]),
    ),
}
"""Kind of concept -> prompts around it, where `{}` stands for its name."""

_LEADS: dict[Kind, str] = {
    "style": r"(?:\s*\b(?:in the style of|in the manner of|by|in|as)(?: an?| the)?\s+)?",
    "attribute": r"(?:\s*\bthat (?:is|are)\s+)?",
}
"""Words that go with the concept when it is taken out of a prompt."""

_ARTICLE = r"\b(?P<article>an?) (?=(?P<next>\w))"


@dataclass(frozen=True)
class Concept:
    """A name with its synonyms, and the kind of thing it names."""

    name: str
    kind: Kind = "object"
    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    """Prompts around the concept, `{}` for its name; the built-in ones of its kind if empty."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ErasureError("The concept to erase is empty; name one, for example 'car'.")
        if self.kind not in get_args(Kind):
            raise ErasureError(
                f"No kind of concept named {self.kind!r}. Known: {', '.join(get_args(Kind))}."
            )
        if isinstance(self.synonyms, str) or isinstance(self.prompts, str):
            raise ErasureError("`synonyms` and `prompts` are sequences of strings, not one string.")
        if not all(name.strip() for name in self.synonyms):
            raise ErasureError(f"One of the synonyms of {self.name!r} is empty; leave it out.")
        for prompt in self.prompts:
            if "{}" not in prompt:
                raise ErasureError(
                    f"The prompt {prompt!r} has no '{{}}' where the concept's name belongs."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    def written(self, count: int | None = None) -> list[str]:
        """`count` prompts with a name in it, spread evenly over the templates.

        Every other prompt uses a synonym, if there are any, and these take turns. Without a
        count every template is used once, or twice if there are synonyms.
        """
        templates = self.prompts or TEMPLATES[self.kind]
        count = count or len(templates) * (2 if self.synonyms else 1)
        prompts = []
        for i in range(count):
            name = (
                self.synonyms[i // 2 % len(self.synonyms)] if self.synonyms and i % 2 else self.name
            )
            template = templates[i * len(templates) // count]
            prompts.append(articles_agree(template.replace("{}", name)))
        return prompts

    def replaced(self, prompt: str, target: str) -> str:
        """The same prompt about `target`: colour, place and layout words stay."""
        return articles_agree(self._pattern().sub(lambda _: target, prompt))

    def without(self, prompt: str) -> str:
        """The same prompt without the concept phrase: `a red car at night` -> `a red at night`.

        For a style, the words that introduce it go too: `a house in the style of X` -> `a house`;
        for an attribute, `that is`. A person becomes `a person`.
        This, and not the empty prompt, is what a null target means for a whole prompt: else colour
        and place would be erased along with the concept.
        """
        if self.kind == "person":
            return self.replaced(prompt, "a person")
        pattern = re.compile(_LEADS.get(self.kind, "") + self._pattern().pattern, re.IGNORECASE)
        stripped = re.sub(r"\s+", " ", pattern.sub("", prompt)).strip()
        return articles_agree(re.sub(r"(?:\s*\b(?:of|and|an?|the))+$", "", stripped))

    def is_named_in(self, text: str) -> bool:
        """Whether the text names the concept, in the singular or the plural."""
        return bool(self._pattern().search(text) or self._pattern("(?:s|es)").search(text))

    def is_named_by(self, text: str) -> bool:
        """Whether the text is a name of the concept, in the singular or the plural."""
        return any(
            pattern.fullmatch(text.strip())
            for pattern in (self._pattern(), self._pattern("(?:s|es)"))
        )

    def _pattern(self, ending: str = "") -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first))
        return re.compile(rf"(?<!\w)(?:{names}){ending}(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Vocabulary:
    """Names of other concepts: where targets are looked for, and what is to be preserved."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.words, str):
            raise ErasureError("A vocabulary is a sequence of words, not one string.")
        if not all(word.strip() for word in self.words):
            raise ErasureError("One of the words of the vocabulary is empty; leave it out.")

    @classmethod
    def read(cls, path: str | Path) -> "Vocabulary":
        """One word or phrase a line; empty lines and lines that begin with `#` do not count.

        Raises:
            ErasureError: there is no such text file, or no word in it.
        """
        try:
            lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ErasureError(f"Cannot read the vocabulary '{path}': {error}.") from error
        words = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        if not words:
            raise ErasureError(f"The vocabulary '{path}' holds no words; write one a line.")
        return cls(words)

    def others(self, erased: Sequence[Concept]) -> tuple[str, ...]:
        """Words that are no name of an erased concept: what must survive."""
        return tuple(w for w in self.words if not any(c.is_named_by(w) for c in erased))

    def candidates(self, erased: Sequence[Concept]) -> tuple[str, ...]:
        """Words a concept may be answered as: those in which no erased concept is named at all.

        `fire truck` is preserved when `truck` is erased, but it is no target: it is a truck.

        Raises:
            ErasureError: none is left.
        """
        left = tuple(w for w in self.words if not any(c.is_named_in(w) for c in erased))
        if not left:
            names = ", ".join(repr(c.name) for c in erased)
            raise ErasureError(
                f"None of the {len(self.words)} words of the vocabulary can be a target for "
                f"{names}; add words that do not name it."
            )
        return left


SAID_IN = 8
"""Prompts in which a word is said that a closed-form edit is to spare."""


def said(words: Sequence[str], kind: Kind, count: int = SAID_IN) -> list[str]:
    """Every word in `count` prompts, as a concept of this kind would be met."""
    stand_in = Concept("thing", kind)
    return [stand_in.replaced(t, word) for word in words for t in stand_in.written(count)]


def articles_agree(prompt: str) -> str:
    """Every `a` and `an` as its next word wants it."""

    def article(match: re.Match[str]) -> str:
        wanted = "an" if match["next"].lower() in "aeiou" else "a"
        return f"{wanted.capitalize() if match['article'][0].isupper() else wanted} "

    return re.sub(_ARTICLE, article, prompt, flags=re.IGNORECASE)
