"""The prompts that an eraser is made from: every name of a concept, some beside other things."""

from collections.abc import Sequence

from diffusers_erase.concepts.concept import Concept
from diffusers_erase.concepts.prompts import SUBJECTS, TEMPLATES, Prompt, spread
from diffusers_erase.concepts.words import with_article


PROMPTS_PER_NAME = 4
"""Least number of prompts that an eraser is made from for each name of a concept."""

SCENES = 8
"""There is one prompt with another thing beside the concept for so many with the concept alone."""


def prompts_to_erase(concept: Concept, count: int, erased: Sequence[Concept] = ()) -> list[Prompt]:
    """`count` prompts or more: every name of the concept, alone, and some beside another thing.

    Few names are in the `example_prompts`; many names take turns alike, in `PROMPTS_PER_NAME`
    prompts at least, and a compound stands in each of its templates: its states are near to those
    of its parts, and what else a prompt says moves them. What stands beside the concept is no name
    of any that is `erased`, and stays.
    """
    if concept.kind == "compound" and not concept.prompts:
        count = max(count, len(TEMPLATES["compound"]))
    scenes = count // SCENES
    if count >= 2 * PROMPTS_PER_NAME * len(concept.synonyms):
        found = concept.example_prompts(count)
    else:
        count = max(count, PROMPTS_PER_NAME * len(concept.names))
        templates = spread(concept.templates, count)
        names = (concept.names[i % len(concept.names)] for i in range(count))
        found = [Prompt(t, name, concept.kind) for t, name in zip(templates, names, strict=True)]
    return [*found, *_beside(concept, scenes, erased or [concept])]


def _beside(concept: Concept, count: int, erased: Sequence[Concept]) -> list[Prompt]:
    """Prompts of an object or a compound before or after another thing; none for own prompts."""
    if concept.kind not in ("object", "compound") or concept.prompts:
        return []
    others = [s for s in SUBJECTS if not any(c.names_overlap(s) for c in erased)]
    if not others:
        return []
    found = []
    for i in range(count):
        other = with_article(others[i % len(others)])
        template = f"a photo of {other} and {{a}}" if i % 2 else f"a photo of {{a}} and {other}"
        found.append(Prompt(template, concept.names[i % len(concept.names)], concept.kind))
    return found
