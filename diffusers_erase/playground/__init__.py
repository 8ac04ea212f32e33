"""The embedded default: a procedural world and a real, tiny Stable Diffusion trained on it."""

from diffusers_erase.playground.captions import captions_with
from diffusers_erase.playground.judge import Judge, JudgeVerdict, load_judge
from diffusers_erase.playground.model import load_pipeline
from diffusers_erase.playground.world import (
    ARTISTS,
    BACKGROUNDS,
    COLOURS,
    FAMILIES,
    FAMILY_OF,
    OBJECTS,
    STYLES,
    SYNONYMS,
    Scene,
    Thing,
    captions,
    prompt,
    render,
    sample_scene,
)


__all__ = [
    "ARTISTS",
    "BACKGROUNDS",
    "COLOURS",
    "FAMILIES",
    "FAMILY_OF",
    "OBJECTS",
    "STYLES",
    "SYNONYMS",
    "Judge",
    "JudgeVerdict",
    "Scene",
    "Thing",
    "captions",
    "captions_with",
    "load_judge",
    "load_pipeline",
    "prompt",
    "render",
    "sample_scene",
]
