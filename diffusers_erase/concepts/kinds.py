"""Kinds of concepts, and the kind that a name has by its words: colours, places, a red car."""

import re
from typing import Literal

from diffusers_erase.concepts.words import singulars


Kind = Literal["object", "style", "person", "attribute", "place", "compound"]

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
"""Colours that templates name."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": (
        *COLOURS, "black", "white", "grey", "gray", "brown", "beige", "magenta", "turquoise",
        "violet", "crimson", "scarlet", "golden", "silvery", "colourful", "colorful",
    ),
    "material": ("wooden", "metallic", "woollen", "woolen", "ceramic", "wicker"),
    "size": ("big", "small", "large", "tiny", "little", "huge", "enormous", "tall"),
    "pattern": ("striped", "checkered", "chequered", "dotted", "spotted", "patterned", "plaid"),
    "state": (
        "old", "ancient", "young", "broken", "ruined", "abandoned", "rusty", "dirty", "wet",
        "dark", "bright",
    ),
    "surface": ("shiny", "glossy", "transparent", "translucent", "fluffy", "furry", "hairy"),
}  # fmt: skip
"""Words that say how a thing is, by what they say of it."""

PLACES: dict[str, str] = {
    "beach": "on the beach",
    "street": "on the street",
    "road": "on the road",
    "night": "at night",
    "sunset": "at sunset",
    "sunrise": "at sunrise",
    "dusk": "at dusk",
    "dawn": "at dawn",
    "sea": "by the sea",
    "winter": "in winter",
    "summer": "in summer",
    "autumn": "in autumn",
    "field": "in a field",
    "studio": "in a studio",
    **{
        name: f"in the {name}"
        for name in (
            "snow", "rain", "fog", "forest", "desert", "jungle", "meadow", "mountains", "mountain",
            "city", "countryside", "woods",
        )
    },
}  # fmt: skip
"""Words for where or when a picture plays -> the same with a preposition."""

PREPOSITION = r"(?:in|on|at|by|under|near|inside|outside|behind)\s"
_ATTRIBUTE_WORDS = {word for words in ATTRIBUTES.values() for word in words}
_SHADES = {"dark", "light", "bright", "pale", "deep"}
"""Words that belong to a colour after them: dark red."""


def placed(name: str) -> str:
    """The place after its preposition: `on the beach`, `at night`, `in Paris`, `in the house`."""
    if re.match(PREPOSITION, name, re.IGNORECASE):
        return name
    bare = re.sub(r"^the\s+", "", name, flags=re.IGNORECASE)
    named = name[:1].isupper() and not name.isupper()
    return PLACES.get(bare.lower(), f"in {name}" if named else f"in the {bare}")


def kind_of(name: str) -> Kind:
    """The kind of a concept of that name: an attribute, a place or a compound by its words.

    An `object` unless each word is known to be an attribute, the name is known to be a place, or
    attributes stand before another word. Set phrases such as `black hole` are compounds too, whose
    parts are kept, and so is `White House`: text encoders such as CLIP's read no capitals.
    """
    attribute, head = split(name)
    if not head:
        return "attribute"
    if not {name.lower(), *singulars(name.lower())}.isdisjoint(PLACES):
        return "place"
    return "compound" if attribute else "object"


def split(name: str) -> tuple[str, str]:
    """The attributes that a name begins with, and its other words; either may be empty."""
    words = name.split()
    count = 0
    while count < len(words) and _is_attribute(words, count):
        count += 1
    return " ".join(words[:count]), " ".join(words[count:])


def other_attributes(attribute: str, count: int = 7) -> tuple[str, ...]:
    """Attributes that say the same of a thing as this one, such as other colours."""
    last = attribute.lower().split()[-1]
    own = next((words for words in ATTRIBUTES.values() if last in words), COLOURS)
    return tuple(word for word in own if word not in attribute.lower().split())[:count]


def _is_attribute(words: list[str], k: int) -> bool:
    word, after = words[k].lower(), words[k + 1 : k + 2]
    shade = word in _SHADES and after and after[0].lower() in ATTRIBUTES["colour"]
    return word in _ATTRIBUTE_WORDS or bool(shade)
