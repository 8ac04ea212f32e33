"""What is to be erased: its names, the prompts it is met in, and those prompts without it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


Kind = Literal["object", "style"]

_COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_PLACES = ("on the beach", "at night", "in the snow", "in a field")
_SUBJECTS = ("house", "car", "cat", "dog", "church", "castle", "star", "fish", "flower", "clock")

TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "object": (
        "a photo of a {}",
        "a picture of a {}",
        "an image of a {}",
        "a {}",
        *(f"a photo of a {colour} {{}}" for colour in _COLOURS),
        *(f"a {colour} {{}}" for colour in _COLOURS),
        *(f"a {{}} {place}" for place in _PLACES),
        *(f"a photo of a {c} {{}} {p}" for c, p in zip(_COLOURS, _PLACES * 2, strict=True)),
    ),
    "style": (
        *(f"a painting of a {subject} in the style of {{}}" for subject in _SUBJECTS),
        *(f"a painting of a {c} {s} by {{}}" for c, s in zip(_COLOURS, _SUBJECTS, strict=False)),
        *(f"a {s} in the style of {{}} {p}" for s, p in zip(_SUBJECTS, _PLACES, strict=False)),
        *(f"an artwork of a {s} by {{}}" for s in _SUBJECTS[:4]),
        "a painting in the style of {}",
    ),
}
"""Kind of concept -> prompts around it, where `{}` stands for its name."""

_ARTICLE = r"\b(?P<article>an?) (?=(?P<next>\w))"


@dataclass(frozen=True)
class Concept:
    """A name with its synonyms, and the kind of thing it names."""

    name: str
    kind: Kind = "object"
    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    """Prompts around the concept, `{}` for its name; the built-in ones of its kind if empty."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ErasureError("The concept to erase is empty; name one, for example 'car'.")
        if self.kind not in get_args(Kind):
            raise ErasureError(
                f"No kind of concept named {self.kind!r}. Known: {', '.join(get_args(Kind))}."
            )
        for prompt in self.prompts:
            if "{}" not in prompt:
                raise ErasureError(
                    f"The prompt {prompt!r} has no '{{}}' where the concept's name belongs."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    def written(self) -> list[str]:
        """Every template with the name in it, then once more with the synonyms taking turns."""
        templates = self.prompts or TEMPLATES[self.kind]
        rounds = [articles_agree(template.format(self.name)) for template in templates]
        for i, template in enumerate(templates if self.synonyms else ()):
            rounds.append(articles_agree(template.format(self.synonyms[i % len(self.synonyms)])))
        return rounds

    def replaced(self, prompt: str, target: str) -> str:
        """The same prompt about `target`: colour, place and layout words stay."""
        return articles_agree(self._pattern().sub(target, prompt))

    def without(self, prompt: str) -> str:
        """The same prompt without the concept phrase: `a red car at night` -> `a red at night`.

        For a style, the words that introduce it go too: `a house in the style of X` -> `a house`.
        This, and not the empty prompt, is what a null target means for a whole prompt: else colour
        and place would be erased along with the concept.
        """
        lead = r"(?:\s*\b(?:in the style of|in the manner of|by|in|as)(?: an?| the)?\s+)?"
        pattern = re.compile(
            (lead if self.kind == "style" else "") + self._pattern().pattern, re.IGNORECASE
        )
        stripped = re.sub(r"\s+", " ", pattern.sub("", prompt)).strip()
        return re.sub(r"(?:\s*\b(?:of|and|an?|the))+$", "", stripped)

    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)


def articles_agree(prompt: str) -> str:
    """Every `a` and `an` as its next word wants it."""

    def article(match: re.Match[str]) -> str:
        wanted = "an" if match["next"].lower() in "aeiou" else "a"
        return f"{wanted.capitalize() if match['article'][0].isupper() else wanted} "

    return re.sub(_ARTICLE, article, prompt, flags=re.IGNORECASE)


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Text states of the prompts, P x tokens x width, from the pipeline's own `encode_prompt`."""
    states: Tensor = pipe.encode_prompt(list(prompts), pipe.device, 1, False)[0]
    return states


def unknown_words(tokenizer: Any, phrase: str) -> dict[str, list[str]]:
    """Words of the phrase that are only spelled letter by letter -> known words near them.

    A text encoder has no idea of such a word, so erasing it erases nothing.
    """
    known = [
        t.removesuffix("</w>") for t in tokenizer.get_vocab() if t.endswith("</w>") and len(t) > 6
    ]
    unknown = {}
    for word in phrase.lower().split():
        pieces = [piece.removesuffix("</w>") for piece in tokenizer.tokenize(word)]
        if len(word) > 1 and all(len(piece) == 1 for piece in pieces):
            unknown[word] = get_close_matches(word, known, n=3, cutoff=0.5)
    return unknown
