"""Prompts around the names of concepts, by their kinds, and the same without a concept."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from diffusers_erase.concepts.kinds import COLOURS, Kind, placed
from diffusers_erase.concepts.words import with_article


_SETTINGS = ("on the beach", "at night", "in the snow", "in a field")
_DOING = ("smiling", "at a desk", "giving a speech", "walking in a street", "as a child")
_MANNERS = ("close-up", "black and white", "painted", "detailed")
_LOOKS = ("new", "small", "beautiful")
_ENDS = ("highly detailed", "in the distance", "on a white background")
SUBJECTS = ("house", "car", "cat", "dog", "church", "castle", "star", "fish", "flower", "clock")
"""Things that prompts of styles, attributes and places show."""

TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "object": (
        "a photo of {a}",
        "a picture of {a}",
        "an image of {a}",
        "{a}",
        *(f"a photo of {with_article(colour)} {{}}" for colour in COLOURS),
        *(f"{with_article(colour)} {{}}" for colour in COLOURS),
        *(f"{{a}} {place}" for place in _SETTINGS),
        *(
            f"a photo of {with_article(c)} {{}} {p}"
            for c, p in zip(COLOURS, _SETTINGS * 2, strict=True)
        ),
    ),
    "style": (
        *(f"a painting of a {subject} in the style of {{}}" for subject in SUBJECTS),
        *(
            f"a painting of {with_article(c)} {s} by {{}}"
            for c, s in zip(COLOURS, SUBJECTS, strict=False)
        ),
        *(f"a {s} in the style of {{}} {p}" for s, p in zip(SUBJECTS, _SETTINGS, strict=False)),
        *(f"an artwork of a {s} by {{}}" for s in SUBJECTS[:4]),
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
        *(f"a {manner} photo of {{}} {p}" for manner, p in zip(_MANNERS, _SETTINGS, strict=True)),
    ),
    "attribute": (
        *(f"a photo of {{a}} {subject}" for subject in SUBJECTS),
        *(f"{{a}} {subject}" for subject in SUBJECTS),
        *(f"{{a}} {s} {p}" for s, p in zip(SUBJECTS, _SETTINGS, strict=False)),
        *(f"a picture of a {s} that is {{}}" for s in SUBJECTS[:4]),
    ),
    "place": (
        *(f"a photo of a {subject} {{in}}" for subject in SUBJECTS),
        *(f"a {subject} {{in}}" for subject in SUBJECTS),
        *(
            f"a photo of {with_article(c)} {s} {{in}}"
            for c, s in zip(COLOURS, SUBJECTS, strict=False)
        ),
        "a photo of the {}",
        "the {}",
    ),
    "compound": (
        "a photo of {a}",
        "a picture of {a}",
        "an image of {a}",
        "{a}",
        *(f"{with_article(word)} {{}}" for word in _LOOKS),
        *(f"a photo of {{a}} {place}" for place in _SETTINGS),
        *(f"a photo of {with_article(word)} {{}}" for word in _LOOKS),
        *(f"{{a}} {place}" for place in _SETTINGS),
        *(f"a picture of {{a}}, {end}" for end in _ENDS),
    ),
}
"""Kind of concept -> templates of prompts around it (see `Prompt.template`)."""

_SCENES: dict[Kind, tuple[str, ...]] = {
    "object": tuple(
        template
        for c, d in zip(COLOURS, COLOURS[3:] + COLOURS[:3], strict=True)
        for template in (
            "a photo of {a} and [a]",
            f"a photo of {with_article(c)} {{}} and {with_article(d)} []",
            "a photo of [a] and {a}",
            f"a photo of {with_article(d)} [] and {with_article(c)} {{}}",
        )
    ),
    "person": ("a photo of {} and []", "a photo of [] and {}"),
    "compound": ("a photo of {a} and [a]", "a photo of [a] and {a}"),
    "style": tuple(
        f"a painting of {with_article(c)} {s} and a {other} in the style of {{}}"
        for c, s, other in zip(COLOURS, SUBJECTS, SUBJECTS[3:], strict=False)
    ),
    "attribute": tuple(f"a photo of {{a}} {s} and a {x}" for s, x in pairwise(SUBJECTS)),
    "place": tuple(f"a photo of a {s} and a {x} {{in}}" for s, x in pairwise(SUBJECTS)),
}
"""Kind of concept -> templates of two things in one picture; `[]` and `[a]` are the other thing."""

_GOLDEN = (5**0.5 - 1) / 2

_LEADS: dict[Kind, str] = {
    "style": r"(?:\s*\b(?:in the style of|in the manner of|by|in|as)(?: an?| the| \{a\})?\s+)?",
    "attribute": r"(?:\s*\bthat (?:is|are)\s+)?",
    "place": r"\s*(?:\b(?:in|on|at|by)\s+(?:an?\s+|the\s+|\{a\}\s+)?)?",
    "compound": r"(?:(?:\bof\s+)?\{a\}\s+)?",
}
"""Words that introduce a concept and are taken out of a prompt with it."""

SLOT = r"\{(a|in)?\}"
"""Where a name stands in a template."""

_DANGLING = r"(?:\s*(?:\b(?:of|and|an?|the)|\{a\}))+$"


def filled(template: str, name: str) -> str:
    """The template with the name for `{}`, with its article for `{a}`, as a place for `{in}`."""
    said: dict[str | None, Callable[[str], str]] = {None: str, "a": with_article, "in": placed}
    return re.sub(SLOT, lambda slot: said[slot[1]](name), template)


@dataclass(frozen=True)
class Prompt:
    """A template, and the name of a concept that stands in it."""

    template: str
    """`{}` is where a name stands, `{a}` where it stands after `a` or `an`, `{in}` where a place
    stands after its preposition; nothing else of a template is ever changed."""
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
        for an attribute, `that is`; for a place, its preposition. A person becomes `a person`.
        This, and not the empty prompt, is what no target means for a whole prompt: else colour and
        place would be erased along with the concept.
        """
        if self.kind == "person":
            return re.sub(SLOT, "a person", self.template)
        slots = self.template.replace("{a}", "{a} {}").replace("{in}", "{}")
        rest = re.sub(_LEADS.get(self.kind, "") + r"\{\}", "", slots, flags=re.IGNORECASE)
        rest = re.sub(r"\s+", " ", rest).strip()
        rest = re.sub(_DANGLING, "", rest)
        return re.sub(r"\{a\} (\w*)", lambda next_word: with_article(next_word[1]), rest)


PROMPTS_PER_WORD = 8
"""Prompts in which each word that a closed-form edit preserves is named."""


def prompts_naming(words: Sequence[str], kind: Kind, count: int = PROMPTS_PER_WORD) -> list[str]:
    """Texts that name each word in `count` templates of this kind."""
    templates = spread(TEMPLATES[kind], count)
    return [filled(template, word) for word in words for template in templates]


def scenes(
    words: Sequence[str], kind: Kind = "object", beside: Sequence[str] = (), count: int = 2
) -> list[str]:
    """Texts about two things in one picture, `count` for each word, in turns of their templates.

    An object, a person or a compound stands before or after a word of `beside` (another one of
    `words` if that is empty); a style, an attribute or a place is named with two subjects.
    """
    others = [*dict.fromkeys(beside or words)]
    found = []
    for i, word in enumerate(words):
        left = [x for x in others if x != word] or [x for x in SUBJECTS if x != word]
        for k in range(count):
            other = left[(i + int((k + 1) * _GOLDEN % 1 * len(left))) % len(left)]
            template = _SCENES[kind][(count * i + k) % len(_SCENES[kind])]
            found.append(filled(template, word).replace("[a]", with_article(other)))
            found[-1] = found[-1].replace("[]", other)
    return found


def spread(templates: Sequence[str], count: int) -> list[str]:
    """`count` of the templates, evenly over all of them."""
    return [templates[i * len(templates) // count] for i in range(count)]
