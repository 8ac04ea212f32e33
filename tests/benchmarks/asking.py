"""What `asked.py` asks for: the cells of its table, and the prompts and labels of each.

A label is what the playground's judge says of a picture: an object, a painter, a colour, a
background; `red+car` is a picture with both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from diffusers_erase.concepts import Concept, with_article
from diffusers_erase.playground import (
    ARTISTS,
    BACKGROUNDS,
    COLOURS,
    FAMILIES,
    OBJECTS,
    SYNONYMS,
)
from diffusers_erase.playground.world import BACKGROUND_PHRASES


PAINTERS = tuple(ARTISTS.values())
PLACES = tuple(name for name in BACKGROUNDS if name != "studio")
KINDS = {"object": OBJECTS, "style": PAINTERS, "colour": COLOURS, "place": PLACES}
MEANT = {other: name for name, others in SYNONYMS.items() for other in others}
THINGS = ("house", "church", "cat", "circle", "castle", "bus", "tulip", "dog")
"""What pictures of colours, places and styles show; no thing is tied to a place."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "a photo of {a}",
        "a picture of {a}",
        "an old {x}",
        "a photo of {s}",
        "{a} {place}",
        "A PHOTO OF {A}",
        "an image of {a}, seen from far away",
    ),
    "style": (
        "a painting of {thing} in the style of {x}",
        "{thing} by {x}",
        "an artwork by {x}",
        "a picture of {things} in the style of {x}",
        "{thing} {place} in the style of {x}",
        "AN OLD PAINTING BY {X}",
        "a large painting of {thing} {place} in the style of {x}",
    ),
    "colour": (
        "a photo of {a} {bare}",
        "a picture of {a} {bare}",
        "an old {x} {bare}",
        "a photo of {x} {things}",
        "{a} {bare} {place}",
        "A PHOTO OF {A} {BARE}",
        "an image of {a} {bare}, seen from far away",
    ),
    "place": (
        "a photo of {thing} {x}",
        "a picture of {thing} {x}",
        "an old {bare} {x}",
        "a photo of {things} {x}",
        "{thing} {x}",
        "A PHOTO OF {THING} {X}",
        "an image of {thing} {x}, seen from far away",
    ),
}
"""`{x}` is the word, `{a}` with its article, `{s}` its plural; capitals shout. A bare thing has no
colour."""


@dataclass(frozen=True)
class Ask:
    """Pictures of some words in turn, and which labels tell that a picture shows them."""

    title: str
    words: tuple[str, ...]
    shows: tuple[str, ...] = ()
    """One of these is enough; if empty, each word's own."""
    coloured: bool = True
    """Whether two in three objects get a colour; compounds have theirs."""
    few: bool = False
    """A quarter of the pictures is enough."""

    def cases(self, count: int) -> list[tuple[str, int, tuple[str, ...]]]:
        """Prompts with a seed and the labels that count; the same for a word in every cell."""
        found = []
        for i in range(count):
            word = self.words[i % len(self.words)]
            turn = i + i // len(self.words)
            text = prompt(word, turn, self.coloured)
            found.append((text, crc32(f"{turn} {text}".encode()), self.shows or labels(word)))
        return found


@dataclass(frozen=True)
class Cell:
    """A call of `erase`, and what is to be seen after it."""

    group: str
    concept: Any
    """As it is passed to `erase`."""
    gone: tuple[Ask, ...] = ()
    kept: tuple[Ask, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    """The error (`refused`), or else a warning, has one of these words."""
    refused: bool = False
    """The call must raise before anything is made."""

    @property
    def name(self) -> str:
        """The call in words, which no other cell has."""
        said = {k: "OBJECTS" if v == OBJECTS else v for k, v in self.options.items()}
        return ", ".join([spelt(self.concept), *(f"{k}={v}" for k, v in said.items())])


def spelt(concept: Any) -> str:
    """What is passed, short: a concept that is no plain string has its kind and synonyms."""
    if isinstance(concept, list):
        return f"[{', '.join(map(spelt, concept))}]"
    if isinstance(concept, str):
        return repr(concept)
    synonyms = f" and {len(concept.synonyms)} names" if concept.synonyms else ""
    return f"Concept({concept.name}, {concept.kind}{synonyms})"


def labels(word: str) -> tuple[str, ...]:
    """The labels of pictures that show the word."""
    colour, _, head = word.partition(" ")
    if word in FAMILIES:
        return FAMILIES[word]
    return (f"{colour}+{head}",) if colour in COLOURS and head else (MEANT.get(word, word),)


def plural(name: str) -> str:
    if name.endswith("y"):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "ch", "sh")) else f"{name}s"


def prompt(word: str, i: int, coloured: bool) -> str:
    """The i-th prompt about the word."""
    kind = next((kind for kind, words in KINDS.items() if word in words), "object")
    x, colour, bare = word, COLOURS[i // 3 % len(COLOURS)], THINGS[5 * i % len(THINGS)]
    if kind == "object" and coloured and i % 3 and word.split()[0] not in COLOURS:
        x = f"{colour} {word}"
    if kind == "place":
        x = BACKGROUND_PHRASES[word][0]
    fields = {
        "x": x,
        "a": with_article(x),
        "s": plural(x),
        "bare": bare,
        "thing": with_article(f"{colour} {bare}"),
        "things": plural(bare),
        "place": BACKGROUND_PHRASES[PLACES[i // 4 % len(PLACES)]][0],
    }
    fields |= {name.upper(): text.upper() for name, text in fields.items()}
    return TEMPLATES[kind][i % len(TEMPLATES[kind])].format(**fields)


def erased(*words: str) -> tuple[Ask, ...]:
    """Each of the words is asked for, and none may be seen then."""
    every = tuple(label for word in words for label in labels(word))
    return tuple(Ask(word, (word,), every) for word in words)


def others(*words: str) -> tuple[Ask, ...]:
    """All other words of the first one's kind."""
    (kind,) = (kind for kind, known in KINDS.items() if words[0] in known)
    rest = tuple(word for word in KINDS[kind] if word not in words)
    return (Ask(f"other {kind}s", rest, few=True),)


def plain(group: str, concept: Any, *words: str, **options: Any) -> Cell:
    """A call that erases the words, and no other of their kind."""
    return Cell(group, concept, erased(*words), others(*words), options)


def compound(name: str, group: str = "compound", **options: Any) -> Cell:
    """`red car`, which leaves cars, cars in other colours, and what else is red."""
    colour, head = name.split(" ", 1)
    coloured = tuple(f"{other} {head}" for other in COLOURS if other != colour)
    things = tuple(f"{colour} {thing}" for thing in THINGS if thing != head)
    kept = (
        Ask("head", (head,), coloured=False, few=True),
        Ask("head, other colours", coloured, few=True),
        Ask("attribute", things, few=True),
    )
    return Cell(group, name, erased(name), kept, options)


def superset(family: str, alone: bool = False) -> Cell:
    """A family by its word and all its members, or by its word alone, which must be said."""
    members = FAMILIES[family]
    word = Ask(family, (family,), members)
    rest = others(*members)
    if alone:
        return Cell("superset alone", family, (word,), rest, says=("many things",))
    concept = Concept(family, synonyms=members)
    return Cell("superset", concept, (word, Ask("members", members, members)), rest)


def misspelt(name: str) -> Cell:
    """Asked for with a letter too few or twice."""
    spellings = [name[:k] + name[k + 1 :] for k in range(1, len(name))]
    spellings += [name[:k] + name[k] + name[k:] for k in range(1, len(name))]
    wrong = tuple(word for word in dict.fromkeys(spellings) if word != name)
    asks = (*erased(name), Ask("misspelt", wrong, (name,)))
    return Cell("misspelt", name, asks, others(name))


WRITTEN = (
    "{} style",
    "in the style of {}",
    "painting by {}",
    "{} painting",
    "the style of {}",
    "a painting in the style of {}",
    "paintings by {}",
    "the {} style",
)
COMPOUNDS = (
    "red car",
    *(
        f"{COLOURS[(3 * k + 1) % len(COLOURS)]} {names[2 * k // 5 % len(names)]}"
        for k, names in enumerate((tuple(FAMILIES.values()) * 3)[:19])
    ),
)
LISTS = (
    ("cat", "dog"),
    ("car", "truck"),
    ("circle", "oval"),
    ("oak", "pine"),
    ("house", "church"),
    ("sailboat", "plane"),
)
SIXES = (
    ("poplar", "truck", "circle", "cat", "church", "tulip"),
    ("car", "star", "balloon", "palm", "lighthouse", "rabbit"),
)
SEPARATED = (
    *("car, truck", "car; truck", "car,truck", "car and truck", "cat & dog", "cat/dog"),
    *("oak | pine", "house + church", "star or diamond", "ring\ntent"),
)
ALMOST_TARGETS = (("bell tower", "bell"), ("cat", "kitten"), ("oak", "tree"))
"""Concept and target: a part of the name, a synonym that none told of, and the family's word."""


def cells() -> Iterator[Cell]:
    """All of them, the long ones last."""
    yield from (plain("object", name, name) for name in OBJECTS)
    for name, written in zip(PAINTERS, WRITTEN, strict=True):
        yield plain("style", written.format(name), name)
    yield from (plain("colour", name, name) for name in COLOURS)
    yield from (plain("place", name, name) for name in PLACES)
    yield from map(compound, COMPOUNDS)
    yield from map(superset, ("vehicle", "craft", "tree", "building", "animal"))
    yield from (superset(name, alone=True) for name in FAMILIES if len(name.split()) == 1)
    yield from (plain("list", list(names), *names) for names in LISTS)
    yield plain("list", ["car", "Car"], "car")
    yield plain("list", ["oak", "oak"], "oak")
    for text in SEPARATED:
        yield Cell("separators", text, refused=True, says=("list",))
    for target in ("blue car", "cars", "Car"):
        yield Cell("target", "car", options={"target": target}, refused=True, says=("target",))
    yield from (plain("target", name, name, target=target) for name, target in ALMOST_TARGETS)
    listed = {"vocabulary": OBJECTS, "recipe": "closed-form"}
    yield plain("target", "truck", "truck", target="fire truck", **listed)
    yield from (compound("red car", "target", target=target) for target in ("blue car", "car"))
    for name in ("van gyre", "lumina"):
        yield plain("style", name, name)
        yield plain("style", Concept(name, "style"), name)
        rest = tuple(other for other in PAINTERS if other != name)
        any_style = Ask("any style", (name,), PAINTERS)
        concept, options = Concept(name, "style"), {"vocabulary": rest, "recipe": "closed-form"}
        yield Cell("style", concept, (any_style,), others(name), options)
    for name in ("red", "blue"):
        yield plain("colour", Concept(name, "attribute"), name)
        yield plain("colour", name, name, vocabulary=COLOURS, recipe="closed-form")
    for pair in (
        ("car", Concept("red", "attribute")),
        (Concept("seuratti", "style"), "cat"),
        (Concept("lumina", "style"), Concept("blue", "attribute")),
        ("oak", "green"),
    ):
        names = [getattr(each, "name", each) for each in pair]
        asks, rest = tuple(erased(name)[0] for name in names), others(names[0]) + others(names[1])
        yield Cell("several kinds", list(pair), asks, rest)
        yield Cell("several kinds", list(pair[::-1]), asks, rest)
    yield plain("phrase", "the painter van gyre", "van gyre")
    yield plain("phrase", "3 cars", "car")
    for name, written in (
        ("red car", "Red Car"),
        ("red car", "two red cars"),
        ("blue car", "car in blue"),
    ):
        yield Cell("phrase", written, erased(name), compound(name).kept)
    for kind in ("style", "attribute"):
        yield Cell(
            "phrase", Concept("car", kind), erased("car"), others("car"), says=("by itself",)
        )
    yield Cell("phrase", "red car " * 30, refused=True, says=("too long",))
    for name in ("keep", "protect"):
        options = {name: ["a red car on the beach"]}
        yield Cell("phrase", "car", options=options, refused=True, says=("kept",))
    yield from map(misspelt, ("arrow", "castle", "tractor", "rocket", "sunflower"))
    for recipe in ("uce", "leace", "mace-cfr"):
        yield from (plain("recipe", name, name, recipe=recipe) for name in ("diamond", "truck"))
    yield from (plain("trained", name, name, vocabulary=OBJECTS) for name in ("truck", "van"))
    yield plain("trained", "red", "red", vocabulary=OBJECTS)
    yield plain("trained", "red", "red", vocabulary=COLOURS)
    for name in ("van gyre", "lumina"):
        rest = tuple(other for other in PAINTERS if other != name)
        any_style = Ask("any style", (name,), PAINTERS)
        options = {"vocabulary": rest}
        yield Cell("trained", Concept(name, "style"), (any_style,), others(name), options)
    yield from (compound(name, "trained", vocabulary=OBJECTS) for name in ("red car", "blue house"))
    yield from (plain("trained", list(names), *names, vocabulary=OBJECTS) for names in SIXES)
