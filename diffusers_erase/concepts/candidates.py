"""Words that may be the target of an erased concept, and prompts that keep other words."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from diffusers_erase.concepts.concept import Concept
from diffusers_erase.concepts.kinds import ATTRIBUTES, PLACES, Kind, kind_of
from diffusers_erase.concepts.prompts import PROMPTS_PER_WORD, TEMPLATES, filled, spread


SYNONYM = 0.05
"""A word nearer to a concept than this share of the distance of the prompt without it is taken for
another name of the concept."""

FRAMES = frozenset((
    "art", "artist", "artwork", "artworks", "background", "backgrounds", "brush", "canvas", "chalk",
    "close", "closeup", "collage", "cartoon", "depiction", "detail", "detailed", "dots", "drawing",
    "drawings", "drawn", "engraving", "etching", "evening", "film", "foreground", "frame", "framed",
    "glass", "hatching", "illustration", "image", "images", "impressionism", "ink", "landscape",
    "light", "lighting", "lights", "manner", "mosaic", "neon", "oil", "painted", "painter",
    "painting", "paintings", "pastel", "pencil", "photo", "photograph", "photographs",
    "photography", "photos", "pic", "picture", "pictures", "pointillism", "portrait", "portraits",
    "poster", "print", "render", "rendering", "scene", "scenery", "shot", "sign", "sketch",
    "sketches", "stained", "stroke", "strokes", "studio", "style", "styles", "swirl", "swirling",
    "swirls", "tile", "tiles", "view", "wallpaper", "watercolor", "watercolour", "window",
))  # fmt: skip
"""Words for pictures and for how they are made; no target of what a picture shows."""

_WITHOUT_MEANING = frozenset((
    "and", "are", "but", "for", "from", "has", "have", "her", "his", "into", "its", "not", "off",
    "one", "our", "out", "over", "she", "that", "the", "their", "them", "they", "this", "two",
    "under", "was", "were", "who", "will", "with", "you", "your", "plain", "pointed", "round",
    "soft",
))  # fmt: skip


def proposed(
    concept: Concept, erased: Sequence[Concept], words: Sequence[str], known: Sequence[str] = ()
) -> list[str]:
    """The words that may replace the concept by their names and kinds.

    An object or person is replaced by one of the words; an attribute by another attribute, a place
    by another place: those among the words, or else the common ones that the tokenizer knows. A
    style is not replaced, it is left out. A compound is replaced by another head with its
    attribute: a text encoder that reads from left to right has the same state for `red` in `red
    car` and in `red bus`, so that no map of states gives the one another colour and not the other.

    Args:
        concept: the concept to be replaced.
        erased: all concepts of the eraser; no word that shares the words of their names is left.
        words: the vocabulary's, or the tokenizer's own.
        known: the words that the tokenizer has a token for; any word if empty.
    """
    if concept.kind == "style":
        return []
    found: Iterable[str]
    if concept.kind in ("attribute", "place"):
        found = _alike(concept, words, known)
    elif concept.kind == "compound":
        attribute, _ = concept.parts
        found = (f"{attribute} {w}" for w in words if kind_of(w) == "object" and is_thing(w))
    else:
        found = comparable(concept, words)
    return [w for w in dict.fromkeys(found) if not any(c.names_overlap(w) for c in erased)]


def is_thing(word: str) -> bool:
    """False for words of pictures and how they are made, and for words without a meaning."""
    return word.lower() not in FRAMES | _WITHOUT_MEANING


def _alike(concept: Concept, words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Attributes that say the same of a thing as this one, or places; of the words if any is."""
    last = concept.name.lower().split()[-1]
    groups = ATTRIBUTES.values() if concept.kind == "attribute" else [tuple(PLACES)]
    group = next((group for group in groups if last in group), ())
    listed = [w for w in words if kind_of(w) == concept.kind and not concept.names_overlap(w)]
    alike = [w for w in listed if w.lower() in group]
    return alike or listed or [w for w in group if not known or w in known]


def admissible(
    index: int,
    proposals: Iterable[str],
    measured: Sequence[Mapping[str, float]],
    *,
    synonym: float = SYNONYM,
) -> dict[str, float]:
    """The proposed words that mean none of the erased concepts -> their distance, nearest first.

    Args:
        index: which of the erased concepts is replaced.
        proposals: the words that may replace it (`proposed`).
        measured: for each erased concept, word -> distance from its nearest name.
        synonym: a word nearer than this to any of them is another name of that concept.
    """
    row = measured[index]
    far = (w for w in proposals if all(other.get(w, synonym + 1) > synonym for other in measured))
    return {word: row[word] for word in sorted(far, key=row.__getitem__)}


def comparable(concept: Concept, words: Iterable[str]) -> list[str]:
    """The words that can be as near to the concept as another of its kind, in the same prompts."""
    if concept.kind in ("attribute", "place"):
        return [word for word in words if kind_of(word) == concept.kind]
    if concept.kind == "compound":
        return []
    things = [word for word in words if kind_of(word) in ("object", "compound")]
    return things if concept.kind == "style" else [word for word in things if is_thing(word)]


def kind_beside(word: str, concept: Kind) -> Kind:
    """The kind of a word that is kept beside an erased concept of this kind.

    A word that is neither an attribute nor a place nor a compound is a style beside a style, a
    person beside a person, and else an object.
    """
    own = kind_of(word)
    return concept if own == "object" and concept in ("style", "person") else own


def kept_prompts(
    words: Iterable[tuple[str, Kind]], erased: Sequence[Concept], count: int = PROMPTS_PER_WORD
) -> list[str]:
    """Texts that name each word in `count` templates of its kind, and no erased concept."""
    pairs = (
        (template, word) for word, kind in words for template in spread(TEMPLATES[kind], count)
    )
    return list(unnamed(pairs, erased))


def parts_kept(erased: Sequence[Concept]) -> list[str]:
    """The prompts about the parts of compounds that name no erased concept."""
    return [
        prompt
        for concept in erased
        for prompt in concept.kept_prompts()
        if not any(other.is_named_in(prompt) for other in erased)
    ]


def unnamed(pairs: Iterable[tuple[str, str]], erased: Sequence[Concept]) -> Iterator[str]:
    """Templates with their words, without those that name an erased concept beside the word.

    `a red castle` is not kept while `red` is erased, nor `a red car` while `red car` is; a `fire
    truck` is kept while `truck` is erased.
    """
    for template, word in pairs:
        text = filled(template, word)
        if is_kept(text, word, erased):
            yield text


def is_kept(text: str, word: str, erased: Sequence[Concept]) -> bool:
    """True unless a text about the word names an erased concept that the word does not name."""
    return not any(c.is_named_in(text) and not c.is_named_in(word) for c in erased)
