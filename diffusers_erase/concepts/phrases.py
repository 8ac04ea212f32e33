"""Parsing of the text that names a concept: frames (`in the style of X`), and lists of names."""

import re
from collections.abc import Sequence
from dataclasses import replace

from diffusers_erase.concepts.concept import Concept
from diffusers_erase.concepts.kinds import PREPOSITION, Kind, kind_of, placed
from diffusers_erase.concepts.words import words_of
from diffusers_erase.errors import ErasureError


_ART = (
    r"(?:paintings?|artworks?|art|drawings?|pictures?|images?|works?|illustrations?|sketch(?:es)?)"
)
_MEDIA = r"(?:oil|acrylic|ink|cave|wall|face|finger|body|spray)"
_ARTICLE = r"(?:(?:an?|the)\s+)?"
_NAME = r"(?P<name>(?!(?:an?|the)\b).+?)"
_BY = r"(?:(?:painted|drawn|made|created|illustrated|inspired)\s+)?by"
_STYLES = (
    rf"(?:{_ARTICLE}{_ART}\s+)?(?:in\s+)?(?:the\s+)?(?:style|manner)\s+of\s+(?P<name>.+)",
    rf"(?:{_ARTICLE}{_ART}\s+)?{_BY}\s+(?P<name>.+)",
    r"(?:artist|painter)\s+(?P<name>(?-i:[A-Z]).+)",
    r"the\s+(?:artist|painter)\s+(?P<name>.+)",
    rf"(?:in\s+)?{_ARTICLE}(?P<name>{_MEDIA}\s+painting|[a-z]+\s+art)[\s-]+styles?",
    rf"(?:in\s+)?{_ARTICLE}{_NAME}(?:['’]s?)?(?:\s+(?:art|painting|drawing))?[\s-]+styles?",
    rf"{_ARTICLE}{_NAME}[\s-]inspired(?:\s+{_ART})?",
    r"(?:the\s+)?(?:artworks?|works|art)\s+of\s+(?P<name>(?!art$).+)",
)
_STYLES_BUT_OF_NAMES = (  # a red painting and a beach painting are about red and the beach
    rf"(?P<name>.+?)['’]s?\s+{_ART}",
    rf"{_ARTICLE}(?!{_MEDIA}\b){_NAME}\s+paintings?",
    rf"{_ARTICLE}(?P<name>(?-i:[A-Z]).*?)\s+(?:art|artworks?)",
)
_SAID = r"(?:black\s+and\s+white\s+|(?!(?:an?|the|and|or|of)\b)[\w-]+\s+){0,3}?"
_PICTURES = (
    rf"{_ARTICLE}(?:{_SAID}(?:photos?|photographs?|pictures?|images?|portraits?|renders?"
    rf"|renderings?)|(?:{_MEDIA}\s+)?(?:paintings?|drawings?|illustrations?|sketch(?:es)?))"
    r"\s+of\s+(?P<name>.+)"
)
_ENDS_OPEN = r"\b(?:of|by|in|at|on)$"
_OTHER_SIDES = r"(?:under|near|inside|outside|behind)\s"
_COUNTS = r"\d+|two|three|four|five|six|seven|eight|nine|ten"
_FULL_NAME = r"portraits?\s+of\s+(?:[A-Z]\S*\s+)+[A-Z]\S*$"
_SCENE = (
    r"(?P<name>.+?)\s+(?:scenes?|scenery|landscapes?|views?|backgrounds?|backdrops?|settings?|time"
    r"|photos?|photographs?|pictures?|images?|paintings?|drawings?)"
)
_ATTRIBUTES = (
    r"in\s+(?P<name>.+)",
    r"(?:some|any|every)thing\s+(?:that\s+is\s+)?(?P<name>.+)",
    r"(?P<name>.+?)\s+(?:things?|objects?|items?|colou?rs?)",
    r"(?:things?|objects?|items?)\s+that\s+(?:is|are)\s+(?P<name>.+)",
    r"(?:the\s+)?colou?r\s+(?P<name>.+)",
)
_LABELS: dict[str, Kind] = {
    "style": "style", "artist": "style", "painter": "style", "person": "person",
    "object": "object", "thing": "object", "place": "place", "scene": "place",
    "attribute": "attribute", "colour": "attribute", "color": "attribute",
}  # fmt: skip
_QUOTES = ("''", '""', "``", "‘’", "“”", "„“", "«»", "「」")
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

    `in the style of X` and `a painting by X` are about a style, `at night`, `under the stars` and
    `a beach scene` about a place, `something red` about an attribute; `a photo of a car`, `all
    cars`, `3 cars` and `"car."` are about a car. `an orange` is an object, which `orange` is not.

    Raises:
        ErasureError: nothing stands in the frame.
    """
    text = _plain(text)
    if found := re.search(_ENDS_OPEN, text, re.IGNORECASE):
        raise ErasureError(
            f"{text!r} names nothing after {found[0]!r}; name what is to be erased. If it is a "
            f'name, pass Concept("{text}").'
        )
    labels = "|".join(_LABELS)
    if found := re.fullmatch(rf"(?P<kind>{labels})\s*:\s*(?P<name>.+)", text, re.IGNORECASE):
        return _bare(found["name"]), _LABELS[found["kind"].lower()]
    setting = re.fullmatch(rf"{PREPOSITION}(?P<name>.+)", text, re.IGNORECASE)
    if setting and (place := _place(setting["name"])):
        return (text if re.match(_OTHER_SIDES, text, re.IGNORECASE) else place), "place"
    for frame in _STYLES:
        if found := re.fullmatch(frame, text, re.IGNORECASE):
            return _bare(found["name"]), "style"
    for frame in _STYLES_BUT_OF_NAMES:
        found = re.fullmatch(frame, text, re.IGNORECASE)
        if found and kind_of(_bare(found["name"])) not in ("attribute", "place"):
            return _bare(found["name"]), "style"
    told: Kind | None = None
    if found := re.fullmatch(_PICTURES, text, re.IGNORECASE):
        told = "person" if re.search(_FULL_NAME, text) else None
        text = _plain(found["name"])
    for frame in _ATTRIBUTES:
        found = re.fullmatch(frame, _bare(text), re.IGNORECASE)
        if found and kind_of(_bare(found["name"])) == "attribute":
            return _bare(found["name"]), "attribute"
    if place := _place(text):
        return place, "place"
    if setting and (_bare(setting["name"]) != setting["name"] or _is_name(setting["name"])):
        bare = _bare(setting["name"])
        usual = re.sub(r"\b(?:an?|the)\s", "", placed(bare), flags=re.IGNORECASE)
        written = re.sub(r"\b(?:an?|the)\s", "", text, flags=re.IGNORECASE)
        return (bare if usual.lower() == written.lower() else text), "place"
    if re.match(r"an?\s", text, re.IGNORECASE) and kind_of(_bare(text)) == "attribute":
        told = "object"
    return _bare(text), told


def single(text: str) -> str:
    """The text, unless something separates names in it.

    Raises:
        ErasureError: it looks like a list of names.
    """
    names = names_in(text)
    lines = len(text.strip().splitlines())
    if len(names) > 1 and (lines > 1 or len(names_in(unframed(text)[0])) > 1):
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
        return Concept(name if told in (None, kind) else _bare(_plain(text)), kind)
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


def _plain(text: str) -> str:
    """The text without spaces, quotation marks and punctuation around it.

    A full stop belongs to an abbreviation of up to three letters: `Dr. Seuss Jr.`
    """
    text = " ".join(text.split())
    for pair in _QUOTES:
        opening, closing, inner = pair[0], pair[1], text[1:-1]
        if (
            text[:1] == opening
            and text[-1:] == closing
            and not re.search(rf"{opening}(?!\w)|(?<!\w){closing}", inner)
        ):
            return _plain(inner) if inner.strip() else text
    ended = re.sub(r"(?<=\w)[.,;:!?。！？…]+$", "", text)
    short = re.search(r"\s(?-i:[A-Z])\w{0,2}$|\.\w$", ended)
    return text if short and text == f"{ended}." else ended


def _bare(name: str) -> str:
    """The name without punctuation around it, and without an article, `all` or `two` before it."""
    name = re.sub(r"^(?:an?|the)\s+(?=\S)", "", _plain(name), flags=re.IGNORECASE)
    every = r"^(?i:any|every|each|some)\s+(?:the\s+)?(?=[^\sA-Z])"
    several = rf"^(?i:all|many|several|{_COUNTS})\s+(?:the\s+)?(?=[^\sA-Z].*s$)"
    return re.sub(several, "", re.sub(every, "", name))


def _place(text: str) -> str | None:
    """The place that a text names, as in `a beach scene`, if it names one."""
    found = re.fullmatch(_SCENE, _bare(text), re.IGNORECASE)
    for name in (_bare(text), *([_bare(found["name"])] if found else [])):
        if kind_of(name) == "place":
            return name
    return None


def _is_name(text: str) -> bool:
    """True for `Paris`, not for `love` or `LOVE`."""
    return text[:1].isupper() and not text.isupper()
