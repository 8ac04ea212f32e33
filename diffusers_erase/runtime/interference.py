"""Where erasers on one denoiser get in each other's way, from text states alone."""

from collections.abc import Mapping, Sequence

from diffusers_erase.eraser.stacking import interference
from diffusers_erase.models.model import Model
from diffusers_erase.runtime.erasures import Erasures
from diffusers_erase.runtime.loaded_eraser import LoadedEraser


DISTURBED = 0.5
"""Another one does so much of what its own eraser does to a concept: worth a warning."""


def interferences(
    model: Model, erasures: Erasures, loaded: Mapping[str, LoadedEraser]
) -> Mapping[str, Mapping[str, float]]:
    """Eraser -> other eraser -> how much it does to the former's concept; see `interference`.

    Empty for fewer than two, or where no text encoder or readable weight is at hand.

    Args:
        model: whose texts are encoded; a bare denoiser has none.
        erasures: what is known of the denoiser's weights, and of states met before.
        loaded: name -> eraser, in force or about to be.
    """
    if len(loaded) < 2 or model.textless:
        return {}
    weights = {}
    if not all(eraser.adapter.factors for eraser in loaded.values()):
        weights = erasures.bases(model.denoiser)
    if any(W.is_meta or not W.is_floating_point() for W in weights.values()):
        return {}
    states = {}
    for name, eraser in loaded.items():
        prompts = eraser.adapter.config.example_prompts(4)
        if prompts not in erasures.states:
            erasures.states[prompts] = model.encode(prompts).flatten(0, 1).float().cpu()
        states[name] = erasures.states[prompts]
    erasers = {name: (eraser.adapter, eraser.strength) for name, eraser in loaded.items()}
    return interference(erasers, states, weights)


def heavily_interfering(
    model: Model, erasures: Erasures, loaded: Mapping[str, LoadedEraser], fresh: Sequence[str]
) -> list[str]:
    """What to tell somebody who loads these fresh erasers beside the others."""
    told = []
    for name, others in interferences(model, erasures, loaded).items():
        for other, share in others.items():
            if share > DISTURBED and (name in fresh or other in fresh):
                told.append(
                    f"The eraser {other!r} does to {name!r} {share:.0%} of what its own eraser "
                    "does: they were not told of each other. `diffusers_erase.stack` with "
                    '`fusion="gram"` tells them.'
                )
    for name, eraser in loaded.items():
        targets = [concept.target for concept in eraser.adapter.config.concepts]
        for other, present in loaded.items():
            erased = [target for target in targets if target in present.adapter.config.names]
            if erased and other != name and (name in fresh or other in fresh):
                told.append(
                    f"{name!r} is answered as {erased[0]!r}, which {other!r} erases: prompts for "
                    "the one may still show the other. Make one eraser of both, or give it another "
                    "target."
                )
    return told
