"""Concepts to erase: their names and kinds, and prompts with and without them."""

from diffusers_erase.concepts.concept import Concept
from diffusers_erase.concepts.kinds import Kind, kind_of
from diffusers_erase.concepts.prompts import (
    PROMPTS_PER_WORD,
    TEMPLATES,
    Prompt,
    filled,
    prompts_naming,
    scenes,
)
from diffusers_erase.concepts.vocabulary import Vocabulary
from diffusers_erase.concepts.words import with_article


__all__ = [
    "PROMPTS_PER_WORD",
    "TEMPLATES",
    "Concept",
    "Kind",
    "Prompt",
    "Vocabulary",
    "filled",
    "kind_of",
    "prompts_naming",
    "scenes",
    "with_article",
]
