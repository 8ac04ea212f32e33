"""Where erasers on one denoiser get in each other's way, from text states alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffusers_erase.concepts import TEMPLATES, Concept, encode
from diffusers_erase.config import EraserConfig
from diffusers_erase.crossattention import denoiser_of
from diffusers_erase.runtime.erasures import Erasures
from diffusers_erase.stacking import interference


DISTURBED = 0.5
"""Another one does so much of what its own eraser does to a concept: worth a warning."""


def interferences(pipe: Any, erasures: Erasures) -> Mapping[str, Mapping[str, float]]:
    """Eraser -> other eraser -> how much it does to the former's concept; see `interference`.

    Empty where fewer than two are loaded, or no text encoder or readable weight is at hand.
    """
    if len(erasures.loaded) < 2 or getattr(pipe, "text_encoder", None) is None:
        return {}
    weights = erasures.bases(denoiser_of(pipe))
    if any(W.is_meta or not W.is_floating_point() for W in weights.values()):
        return {}
    for name, force in erasures.loaded.items():
        if name not in erasures.states:
            erasures.states[name] = _states(pipe, force.adapter.config)
    erasers = {name: (force.adapter, force.strength) for name, force in erasures.loaded.items()}
    return interference(erasers, erasures.states, weights)


def disturbed(pipe: Any, erasures: Erasures, fresh: Sequence[str]) -> list[str]:
    """What to tell somebody who has just loaded these erasers beside the others."""
    told = []
    for name, others in interferences(pipe, erasures).items():
        for other, share in others.items():
            if share > DISTURBED and (name in fresh or other in fresh):
                told.append(
                    f"The eraser {other!r} does to {name!r} {share:.0%} of what its own eraser "
                    "does: they were not told of each other. `diffusers_erase.stack` with "
                    '`fusion="gram"` tells them.'
                )
    for name, force in erasures.loaded.items():
        targets = (force.adapter.config.target or "").split(", ")
        for other, present in erasures.loaded.items():
            erased = [target for target in targets if target in present.adapter.config.names]
            if erased and other != name and (name in fresh or other in fresh):
                told.append(
                    f"{name!r} is answered as {erased[0]!r}, which {other!r} erases: prompts for "
                    "the one may still show the other. Make one eraser of both, or give it another "
                    "target."
                )
    return told


def _states(pipe: Any, config: EraserConfig) -> Tensor:
    kind: Any = config.kind if config.kind in TEMPLATES else "object"
    concept = Concept(config.concept, kind, config.synonyms)
    return encode(pipe, concept.written(4)).flatten(0, 1).float().cpu()
