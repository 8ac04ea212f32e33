"""Parsing of the text that names a concept: frames (`in the style of X`), and lists of names."""

import re
from collections.abc import Sequence
from dataclasses import replace

from diffusers_erase.concepts.concept import Concept
from diffusers_erase.concepts.kinds import PLACES, PREPOSITION, Kind, kind_of
from diffusers_erase.concepts.words import words_of
from diffusers_erase.errors import ErasureError


_ART = (
    r"(?:paintings?|artworks?|art|drawings?|pictures?|images?|works?|illustrations?|sketch(?:es)?)"
)
_MEDIA = r"(?!(?:oil|acrylic|ink|cave|wall|face|finger|body|spray)\b)"
_ARTICLE = r"(?:(?:an?|the)\s+)?"
_NAME = r"(?P<name>(?!(?:an?|the)\b).+?)"
_STYLES = (
    rf"(?:{_ARTICLE}{_ART}\s+)?(?:in\s+)?(?:the\s+)?(?:style|manner)\s+of\s+(?P<name>.+)",
    rf"(?:{_ARTICLE}{_ART}\s+)?by\s+(?P<name>.+)",
    rf"(?:in\s+)?{_ARTICLE}{_NAME}(?:['’]s?)?(?:\s+(?:art|painting|drawing))?[\s-]+styles?",
    rf"(?P<name>.+?)['’]s?\s+{_ART}",
    rf"{_ARTICLE}{_MEDIA}{_NAME}\s+paintings?",
)
_PICTURES = (
    rf"{_ARTICLE}(?:photos?|photographs?|pictures?|images?|paintings?|drawings?|portraits?"
    r"|illustrations?|renders?|renderings?|sketch(?:es)?)\s+of\s+(?P<name>.+)"
)
_FULL_NAME = r"portraits?\s+of\s+(?:[A-Z]\S*\s+)+[A-Z]\S*$"
_SEPARATORS = r"\s*[,;|\n]\s*(?:and\s+|or\s+)?|\s+[&/+]\s+|\s+(?:and|or)\s+"
_WORDS_AND_SLASHES = r"[a-z][a-z ]+(?:/[a-z][a-z ]+)+"  # not AC/DC

ALMOST_ALL = 0.8
"""Share of a vocabulary's words of one kind that makes it a vocabulary of that kind."""


def names_in(text: str) -> tuple[str, ...]:
    """The names that commas, `and` and their like separate in a text; one if nothing does."""
    separators = "/" if re.fullmatch(_WORDS_AND_SLASHES, text.strip()) else _SEPARATORS
    names = (name.strip() for name in re.split(separators, text.strip(), flags=re.IGNORECASE))
    return tuple(name for name in names if name)


def unframed(text: str) -> tuple[str, Kind | None]:
    """The name that stands in a frame, and the kind that the frame tells, if it tells any.

    `in the style of X` and `a painting by X` are about a style, `at night` is about a place;
    `a photo of a car` and `the car` are about a car.

    Raises:
        ErasureError: nothing stands in the frame.
    """
    text = " ".join(text.split())
    if found := re.search(r"\b(?:of|by|in|at|on)$", text, re.IGNORECASE):
        raise ErasureError(
            f"{text!r} names nothing after {found[0]!r}; name what is to be erased. If it is a "
            f'name, pass Concept("{text}").'
        )
    setting = re.fullmatch(rf"{PREPOSITION}(?P<name>.+)", text, re.IGNORECASE)
    if setting and _bare(setting["name"]).lower() in PLACES:
        return _bare(setting["name"]), "place"
    for frame in _STYLES:
        found = re.fullmatch(frame, text, re.IGNORECASE)
        if found and kind_of(found["name"]) != "attribute":  # a red painting
            return _bare(found["name"]), "style"
    if found := re.fullmatch(_PICTURES, text, re.IGNORECASE):
        told: Kind | None = "person" if re.search(_FULL_NAME, text) else None
        return _bare(found["name"]), told
    if setting and _bare(setting["name"]) != setting["name"]:
        return _bare(setting["name"]), "place"
    return _bare(text), None


def single(text: str) -> str:
    """The text, unless something separates names in it.

    Raises:
        ErasureError: it looks like a list of names.
    """
    names = names_in(text)
    if len(names) > 1:
        listed = ", ".join(f'"{name}"' for name in names)
        raise ErasureError(
            f"{text.strip()!r} looks like more than one concept; pass a list: [{listed}]. If it is "
            f'one name, pass Concept("{text.strip()}").'
        )
    return text


def concept_of(text: str, kind: Kind | None = None, *, among: Kind | None = None) -> Concept:
    """The concept that a user means by a text.

    Args:
        text: a name, or a name in a frame (see `unframed`).
        kind: its kind, if the user says it: a frame of another kind belongs to the name then.
        among: the kind of the vocabulary's words; also that of a name that tells none.
    """
    name, told = unframed(text)
    if kind is not None:
        return Concept(name if told in (None, kind) else text.strip(), kind)
    inferred = told or kind_of(name)
    return Concept(name, among if among and inferred == "object" else inferred)


def merged(concepts: Sequence[Concept]) -> tuple[Concept, ...]:
    """The concepts, with those of one kind that have the same name as one with all synonyms.

    Case, articles and plurals make no difference; the first spelling stays.
    """
    found: dict[tuple[Kind, object], Concept] = {}
    for concept in concepts:
        key = concept.kind, words_of(concept.name) or concept.name
        first = found.setdefault(key, concept)
        if first is not concept:
            synonyms = dict.fromkeys((*first.synonyms, *concept.synonyms))
            prompts = dict.fromkeys((*first.prompts, *concept.prompts))
            found[key] = replace(first, synonyms=tuple(synonyms), prompts=tuple(prompts))
    return tuple(found.values())


def kind_among(words: Sequence[str]) -> Kind | None:
    """The kind that almost all of these words have, by themselves or by their frames, if any."""
    found = [told or kind_of(name) for name, told in map(unframed, words)]
    kinds: tuple[Kind, ...] = ("attribute", "place", "style")
    for kind in kinds:
        if len(found) > 1 and found.count(kind) >= ALMOST_ALL * len(found):
            return kind
    return None


def _bare(name: str) -> str:
    """The name without an article before it."""
    return re.sub(r"^(?:an?|the)\s+(?=\S)", "", name, flags=re.IGNORECASE)
