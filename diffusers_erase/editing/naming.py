"""The erased concepts that a text may name, found by their words: there may be a thousand."""

import re
from collections.abc import Sequence

from diffusers_erase.concepts import Concept
from diffusers_erase.concepts.words import plural, words_of


class Named:
    """The concepts that share a word with a text, among which are all that the text names.

    A concept with a name that is not ASCII, or has no letters or digits, is always among them.
    """

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self._concepts = tuple(concepts)
        self._always: list[int] = []
        self._by_word: dict[str, list[int]] = {}
        for k, concept in enumerate(concepts):
            names = [*concept.names, *map(plural, concept.names)]
            if all(name.isascii() and _words(name) for name in names):
                for word in set[str]().union(*map(_words, names)):
                    self._by_word.setdefault(word, []).append(k)
            else:
                self._always.append(k)

    def near(self, text: str) -> list[Concept]:
        """The concepts that the text may name, in their order."""
        if not text.isascii():
            return [*self._concepts]
        found = {*self._always}
        for word in _words(text):
            found.update(self._by_word.get(word, ()))
        return [self._concepts[k] for k in sorted(found)]


def _words(text: str) -> set[str]:
    """The words of a text in lower case, as they are and in the singular."""
    return {*words_of(text), *re.findall(r"[^\W_]+", text.lower())}
