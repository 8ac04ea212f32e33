"""A concept to erase: its names, its kind, and prompts with it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

from diffusers_erase.concepts.kinds import PREPOSITION, Kind, kind_of, other_attributes, split
from diffusers_erase.concepts.prompts import SLOT, SUBJECTS, TEMPLATES, Prompt, filled, spread
from diffusers_erase.concepts.words import plural, with_article, within, words_of
from diffusers_erase.errors import ErasureError, require_choice


@dataclass(frozen=True)
class Concept:
    """A name with its synonyms, and the kind of thing it names.

    A word for many things, such as `vehicle`, is erased as a word: its members are still drawn by
    their own names. To erase these too, list them: `Concept("vehicle", synonyms=("car", "bus"))`.
    """

    name: str
    kind: Kind = None  # type: ignore[assignment]
    """Inferred from the name if None (see `kind_of`); it is one of `Kind` ever after."""
    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    """Templates of prompts around the concept: `{}` for its name, `{a}` for its name after `a` or
    `an`, `{in}` for a place after its preposition. The built-in ones of its kind if empty."""

    inferred: bool = field(default=False, init=False, compare=False, repr=False)
    """Whether the kind was inferred."""

    def __post_init__(self) -> None:
        if isinstance(self.synonyms, str) or isinstance(self.prompts, str):
            raise ErasureError("`synonyms` and `prompts` are sequences of strings, not one string.")
        for text in (self.name, *self.synonyms, *self.prompts):
            if not isinstance(text, str):
                raise ErasureError(
                    f"Names, synonyms and prompts of a concept are strings; got {text!r}."
                )
        if not self.name.strip():
            raise ErasureError("The concept to erase is empty; name one, for example 'car'.")
        if self.kind is None:
            object.__setattr__(self, "kind", kind_of(self.name))
            object.__setattr__(self, "inferred", True)
        require_choice("kind of concept", self.kind, get_args(Kind))
        if self.kind == "compound" and len(self.name.split()) < 2:
            raise ErasureError(
                f"A compound is an attribute and a thing, such as 'red car'; {self.name!r} is one "
                "word. Leave out its kind, or name both."
            )
        if not all(name.strip() for name in self.synonyms):
            raise ErasureError(f"One of the synonyms of {self.name!r} is empty; leave it out.")
        for template in self.prompts:
            if not re.search(SLOT, template):
                raise ErasureError(
                    f"The prompt {template!r} has no '{{}}' where the concept's name belongs."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    @property
    def templates(self) -> tuple[str, ...]:
        """Its own prompts, or the built-in ones of its kind.

        A place that is written with its preposition, such as `under the stars`, stands in those
        alone that have one.
        """
        built_in = TEMPLATES[self.kind]
        if self.kind == "place" and re.match(PREPOSITION, self.name, re.IGNORECASE):
            built_in = tuple(template for template in built_in if "{in}" in template)
        return self.prompts or built_in

    def example_prompts(self, count: int | None = None) -> list[Prompt]:
        """`count` prompts with one of its names, spread evenly over its templates.

        Every other prompt uses a synonym, if there are any, and these take turns. Without a
        count every template is used once, or twice if there are synonyms.
        """
        templates = self.templates
        count = count or len(templates) * (2 if self.synonyms else 1)
        names = [
            self.synonyms[i // 2 % len(self.synonyms)] if self.synonyms and i % 2 else self.name
            for i in range(count)
        ]
        pairs = zip(spread(templates, count), names, strict=True)
        return [Prompt(template, name, self.kind) for template, name in pairs]

    @property
    def parts(self) -> tuple[str, ...]:
        """The attribute and the head of a compound: `red` and `car`; empty for other kinds."""
        if self.kind != "compound":
            return ()
        attribute, head = split(self.name)
        if attribute and head:
            return attribute, head
        first, *others = self.name.split()
        return first, " ".join(others)

    def kept_prompts(self) -> tuple[str, ...]:
        """Prompts of a compound's neighbours, whose pictures must stay; empty for other kinds.

        They show its head alone and with other attributes, and its attribute with other heads: the
        first three one of each. Each attribute of several is another one: `red car` of `old red
        car`.
        """
        if not self.parts:
            return ()
        attribute, head = self.parts
        each = attribute.split() if " " in attribute else ()
        others = dict.fromkeys((*each, *other_attributes(attribute)))
        relatives = [f"{other} {head}" for other in others]
        bearers = [f"{attribute} {s}" for s in SUBJECTS if words_of(s) != words_of(head)]
        pairs = zip(relatives, bearers, strict=False)
        names = [head, *(name for pair in pairs for name in pair)]
        photo, picture, image, bare, new = TEMPLATES["compound"][:5]
        prompts = [filled(template, name) for template in (photo, bare, new) for name in names]
        prompts += [filled(template, head) for template in (picture, image)]
        return tuple(prompt for prompt in prompts if not self.is_named_in(prompt))

    def names_overlap(self, text: str) -> bool:
        """True if the text and a name of the concept share their words.

        The words of one stand in the other one after another, or both have the same words; case,
        articles and plurals make no difference.
        """
        words = words_of(text)
        for own in map(words_of, self.names):
            if words and own and (within(own, words) or within(words, own)):
                return True
            if words and set(words) == set(own):
                return True
        return False

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

        return self._pattern(self.names, r"(?P<article>\ban? )?").sub(replacement, text)

    def is_named_in(self, text: str) -> bool:
        """True if the text names the concept, in the singular or the plural."""
        words = words_of(text)
        return bool(self._pattern((*self.names, *map(plural, self.names))).search(text)) or any(
            own and within(own, words) for own in map(words_of, self.names)
        )

    def is_named_by(self, text: str) -> bool:
        """True if the text is a name of the concept, in the singular or the plural.

        An article before it makes no difference.
        """
        words = words_of(text)
        return bool(
            self._pattern((*self.names, *map(plural, self.names))).fullmatch(text.strip())
        ) or any(own and own == words for own in map(words_of, self.names))

    def _pattern(self, names: Iterable[str], lead: str = "") -> re.Pattern[str]:
        either = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return re.compile(rf"{lead}(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
