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
    "knives": "knife", "shelves": "shelf", "thieves": "thief",
}  # fmt: skip
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


def misspellings(word: str, count: int = 4) -> tuple[str, ...]:
    """`count` spellings of a word with one slip in them, the same at every call.

    A letter is left out, typed twice or swapped with the next one, where letters stand twice and
    else in the middle; then the first letter is typed twice. That is the slip that tokenizers
    survive: `aarrow` still holds the token `arrow`.
    """
    inner = range(1, len(word) - 1)
    twice = [k for k in inner if word[k] == word[k - 1]]
    order = list(dict.fromkeys((*twice, *sorted(inner, key=lambda k: abs(2 * k + 1 - len(word))))))
    slips = []
    for k in order:
        left_out = word[:k] + word[k + 1 :]
        swapped = word[:k] + word[k + 1] + word[k] + word[k + 2 :]
        slips += [left_out, word[:k] + word[k] + word[k:], swapped, word[0] + word]
    return tuple(slip for slip in dict.fromkeys(slips) if slip != word)[:count]


def _singular(word: str) -> str:
    """One form for both numbers; not always a word: `cooky` for `cookie` and `cookies`."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("s") and not re.search(_NO_PLURAL, word):
        word = word[:-2] if re.search(_PLURAL_IN_ES, word) else word[:-1]
    return f"{word[:-2]}y" if word.endswith("ie") and len(word) > 3 else word
