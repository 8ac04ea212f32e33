"""Words of names: articles, singular and plural, and whether two names share their words."""

import re
from collections.abc import Sequence


_VOWEL_SOUND = (
    r"(?!uni(?!n|m|de)|us[aeu]|usb|u-|u[ks]\b|uk[eu]|ut[aeio]|ur[aio]|ub[io]|ufo|eu|ewe"
    r"|ones?(ie)?\b|once\b)[aeiou]|hour|honou?r|honest|heir|x-"
    r"|(?-i:[FHLMNRSX][A-Z]+\b)"
)

_IRREGULAR = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "wolves": "wolf", "leaves": "leaf",
    "knives": "knife", "shelves": "shelf", "thieves": "thief", "potatoes": "potato",
    "tomatoes": "tomato", "heroes": "hero", "cacti": "cactus",
}  # fmt: skip
_PLURALS = {one: many for many, one in _IRREGULAR.items()}
_ONE_NUMBER = frozenset((
    "news", "lens", "series", "species", "glasses", "jeans", "pants", "trousers", "shorts",
    "scissors", "canvas", "atlas", "christmas", "mars",
))  # fmt: skip
_FOLLOWED = frozenset(("of", "with", "without", "in", "on", "at", "by", "from", "and", "or"))
_NO_PLURAL = r"(?:ss|us|is)$|^.{0,2}s$"
_PLURAL_IN_ES = r"(?:ss|x|zz|ch|sh|[^o]us|[tr]o)es$"


def with_article(name: str) -> str:
    """The name after `a` or `an`, by its first sound: `a car`, `an oak`, `a unicorn`, `an hour`."""
    return f"{'an' if re.match(_VOWEL_SOUND, name, re.IGNORECASE) else 'a'} {name}"


def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, in the singular and without a leading article."""
    words = re.findall(r"[^\W_]+", name.lower().replace("'s", ""))
    found = tuple(_singular(word) for word in words)
    return found[1:] if len(found) > 1 and found[0] in ("a", "an", "the") else found


def within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """True if the words of `part` stand in `whole`, one after another."""
    count = len(part)
    return any(tuple(whole[k : k + count]) == tuple(part) for k in range(len(whole) - count + 1))


def plural(name: str) -> str:
    """The name in the plural, by its last word: `churches`, `butterflies`; unchanged if it is."""
    *others, last = name.split(" ")
    word = last.lower()
    if word in _IRREGULAR or (word.endswith("s") and _singular(word) != word):
        return name
    if word in _PLURALS:
        many = _PLURALS[word]
    elif re.search(r"[^aeiou]y$", word):
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}es" if re.search(r"(?:s|x|z|ch|sh)$", word) else f"{last}s"
    return " ".join((*others, many))


def singulars(name: str) -> tuple[str, ...]:
    """Possible singulars of a plural name, the likeliest first; empty for other names.

    Not for names of several capitalised words, nor where something follows: `men in black`.
    """
    *others, last = name.split(" ")
    word = last.lower()
    if _singular(word) == word or (others and name.istitle()) or _FOLLOWED & set(others):
        return ()
    ways = (_singular(word), word[:-1], word[:-2])
    return tuple(" ".join((*others, one)) for one in dict.fromkeys(ways) if len(one) > 1)


def _singular(word: str) -> str:
    """One form for both numbers; not always a word: `cooky` for `cookie` and `cookies`."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _ONE_NUMBER:
        return word
    if word.endswith("s") and not re.search(_NO_PLURAL, word):
        word = word[:-2] if re.search(_PLURAL_IN_ES, word) else word[:-1]
    return f"{word[:-2]}y" if word.endswith("ie") and len(word) > 3 else word
