"""Concepts to erase: their names, prompts that name them, and those prompts without them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from diffusers_erase.errors import ErasureError, require_choice


Kind = Literal["object", "style", "person", "attribute"]

_COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_PLACES = ("on the beach", "at night", "in the snow", "in a field")
_DOING = ("smiling", "at a desk", "giving a speech", "walking in a street", "as a child")
_MANNERS = ("close-up", "black and white", "painted", "detailed")
_SUBJECTS = ("house", "car", "cat", "dog", "church", "castle", "star", "fish", "flower", "clock")

_VOWEL_SOUND = (
    r"(?!uni(?!n|m|de)|us[aeu]|usb|u-|u[ks]\b|uk[eu]|ut[aeio]|ur[aio]|ub[io]|ufo|eu|ewe"
    r"|ones?(ie)?\b|once\b)[aeiou]|hour|honou?r|honest|heir|x-"
    r"|(?-i:[FHLMNRSX][A-Z]+\b)"
)


def with_article(name: str) -> str:
    """The name after `a` or `an`, by its first sound: `a car`, `an oak`, `a unicorn`, `an hour`."""
    return f"{'an' if re.match(_VOWEL_SOUND, name, re.IGNORECASE) else 'a'} {name}"


TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "object": (
        "a photo of {a}",
        "a picture of {a}",
        "an image of {a}",
        "{a}",
        *(f"a photo of {with_article(colour)} {{}}" for colour in _COLOURS),
        *(f"{with_article(colour)} {{}}" for colour in _COLOURS),
        *(f"{{a}} {place}" for place in _PLACES),
        *(
            f"a photo of {with_article(c)} {{}} {p}"
            for c, p in zip(_COLOURS, _PLACES * 2, strict=True)
        ),
    ),
    "style": (
        *(f"a painting of a {subject} in the style of {{}}" for subject in _SUBJECTS),
        *(
            f"a painting of {with_article(c)} {s} by {{}}"
            for c, s in zip(_COLOURS, _SUBJECTS, strict=False)
        ),
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
        *(f"a photo of {{a}} {subject}" for subject in _SUBJECTS),
        *(f"{{a}} {subject}" for subject in _SUBJECTS),
        *(f"{{a}} {s} {p}" for s, p in zip(_SUBJECTS, _PLACES, strict=False)),
        *(f"a picture of a {s} that is {{}}" for s in _SUBJECTS[:4]),
    ),
}
"""Kind of concept -> templates of prompts around it (see `Prompt.template`)."""

_LEADS: dict[Kind, str] = {
    "style": r"(?:\s*\b(?:in the style of|in the manner of|by|in|as)(?: an?| the| \{a\})?\s+)?",
    "attribute": r"(?:\s*\bthat (?:is|are)\s+)?",
}
"""Words that introduce a concept and are taken out of a prompt with it."""

_NAME = r"\{(a?)\}"
_DANGLING = r"(?:\s*(?:\b(?:of|and|an?|the)|\{a\}))+$"


def filled(template: str, name: str) -> str:
    """The template with the name for `{}`, and the name after its article for `{a}`."""
    return re.sub(_NAME, lambda slot: with_article(name) if slot[1] else name, template)


@dataclass(frozen=True)
class Prompt:
    """A template, and the name of a concept that stands in it."""

    template: str
    """`{}` is where a name stands, `{a}` where a name stands after `a` or `an`; nothing else of a
    template is ever changed."""
    name: str
    kind: Kind = "object"

    @property
    def text(self) -> str:
        """The prompt as the text encoder reads it."""
        return filled(self.template, self.name)

    def about(self, target: str | None) -> str:
        """The same prompt about `target`; None for the prompt without the concept."""
        return self.without() if target is None else filled(self.template, target)

    def without(self) -> str:
        """The same prompt without the concept: `a red car at night` -> `a red at night`.

        For a style, the words that introduce it go too: `a house in the style of X` -> `a house`;
        for an attribute, `that is`. A person becomes `a person`. This, and not the empty prompt, is
        what no target means for a whole prompt: else colour and place would be erased along with
        the concept.
        """
        if self.kind == "person":
            return re.sub(_NAME, "a person", self.template)
        slots = self.template.replace("{a}", "{a} {}")
        rest = re.sub(_LEADS.get(self.kind, "") + r"\{\}", "", slots, flags=re.IGNORECASE)
        rest = re.sub(r"\s+", " ", rest).strip()
        rest = re.sub(_DANGLING, "", rest)
        return re.sub(r"\{a\} (\w*)", lambda next_word: with_article(next_word[1]), rest)


@dataclass(frozen=True)
class Concept:
    """A name with its synonyms, and the kind of thing it names."""

    name: str
    kind: Kind = "object"
    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    """Templates of prompts around the concept: `{}` for its name, `{a}` for its name after `a` or
    `an`. The built-in ones of its kind if empty."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ErasureError("The concept to erase is empty; name one, for example 'car'.")
        require_choice("kind of concept", self.kind, get_args(Kind))
        if isinstance(self.synonyms, str) or isinstance(self.prompts, str):
            raise ErasureError("`synonyms` and `prompts` are sequences of strings, not one string.")
        if not all(name.strip() for name in self.synonyms):
            raise ErasureError(f"One of the synonyms of {self.name!r} is empty; leave it out.")
        for template in self.prompts:
            if not re.search(_NAME, template):
                raise ErasureError(
                    f"The prompt {template!r} has no '{{}}' where the concept's name belongs."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    def example_prompts(self, count: int | None = None) -> list[Prompt]:
        """`count` prompts with one of its names, spread evenly over its templates.

        Every other prompt uses a synonym, if there are any, and these take turns. Without a
        count every template is used once, or twice if there are synonyms.
        """
        templates = self.prompts or TEMPLATES[self.kind]
        count = count or len(templates) * (2 if self.synonyms else 1)
        names = [
            self.synonyms[i // 2 % len(self.synonyms)] if self.synonyms and i % 2 else self.name
            for i in range(count)
        ]
        return [
            Prompt(templates[i * len(templates) // count], name, self.kind)
            for i, name in enumerate(names)
        ]

    def replaced(self, text: str, target: str) -> str:
        """The text with `target` for every name of the concept.

        An article right before such a name is adapted to `target`; nothing else changes.
        """

        def replacement(found: re.Match[str]) -> str:
            article = found["article"]
            if not article or not target[:1].isalpha():
                return (article or "") + target
            agreed = with_article(target)
            return agreed[0].upper() + agreed[1:] if article[0].isupper() else agreed

        return self._pattern(r"(?P<article>\ban? )?").sub(replacement, text)

    def is_named_in(self, text: str) -> bool:
        """True if the text names the concept, in the singular or the plural."""
        return bool(self._pattern(ending="(?:s|es)?").search(text))

    def is_named_by(self, text: str) -> bool:
        """True if the text is a name of the concept, in the singular or the plural."""
        return bool(self._pattern(ending="(?:s|es)?").fullmatch(text.strip()))

    def _pattern(self, lead: str = "", ending: str = "") -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        names = "|".join(map(re.escape, longest_first))
        return re.compile(rf"{lead}(?<!\w)(?:{names}){ending}(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Vocabulary:
    """Names of other concepts: candidates for targets, and what is to be preserved."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.words, str):
            raise ErasureError("A vocabulary is a sequence of words, not one string.")
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

    def candidates(self, erased: Sequence[Concept]) -> tuple[str, ...]:
        """The words in which no erased concept is named at all; these can be targets.

        `fire truck` is preserved when `truck` is erased, but it is no target: it is a truck.
        """
        left = tuple(w for w in self.words if not any(c.is_named_in(w) for c in erased))
        if not left:
            names = ", ".join(repr(c.name) for c in erased)
            raise ErasureError(
                f"None of the {len(self.words)} words of the vocabulary can be a target for "
                f"{names}; add words that do not name it."
            )
        return left


PROMPTS_PER_WORD = 8
"""Prompts in which each word that a closed-form edit preserves is named."""


def prompts_naming(words: Sequence[str], kind: Kind, count: int = PROMPTS_PER_WORD) -> list[str]:
    """Texts that name each word in `count` templates of this kind."""
    return [p.text for word in words for p in Concept(word, kind).example_prompts(count)]
