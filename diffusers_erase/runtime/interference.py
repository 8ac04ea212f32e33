"""Interference: how much loaded erasers change one another's concepts, from text states alone."""

from collections.abc import Collection, Mapping
from warnings import warn

from diffusers_erase.eraser.stacking import interference
from diffusers_erase.models.model import Model
from diffusers_erase.runtime.erasures import Erasures
from diffusers_erase.runtime.loaded_eraser import LoadedEraser


WARN_ABOVE = 0.5
"""Interference that is worth a warning: half of what the concept's own eraser does."""


def interferences(
    model: Model,
    erasures: Erasures,
    loaded: Mapping[str, LoadedEraser],
    about: Collection[str] | None = None,
) -> Mapping[str, Mapping[str, float]]:
    """Eraser -> other eraser -> how much the other changes the eraser's concept; `interference`.

    With `about` only pairs that one of these erasers is in. Empty for fewer than two erasers, where
    no prompt can be encoded, and for text maps on weights that cannot be read. A measurement that
    fails is a warning: erasers act without it.
    """
    if len(loaded) < 2 or model.textless:
        return {}
    try:
        return _measured(model, erasures, loaded, about)
    except Exception as error:
        warn(
            f"Interference between the erasers was not measured: {type(error).__name__}: {error}",
            stacklevel=4,
        )
        return {}


def _measured(
    model: Model,
    erasures: Erasures,
    loaded: Mapping[str, LoadedEraser],
    about: Collection[str] | None,
) -> Mapping[str, Mapping[str, float]]:
    weights = {}
    if any(eraser.adapter.text_map for eraser in loaded.values()):
        weights = erasures.bases(model.denoiser)
    if any(W.is_meta or not W.is_floating_point() for W in weights.values()):
        return {}
    states, grams, encoded = {}, {}, {}
    for name, eraser in loaded.items():
        prompts = eraser.adapter.config.example_prompts(4)
        if prompts not in erasures.states:
            erasures.states[prompts] = model.encode(prompts).flatten(0, 1).float().cpu()
        states[name] = encoded[prompts] = erasures.states[prompts]
        text_map = eraser.adapter.text_map
        if text_map is not None:
            known = erasures.grams.get(name)
            if known is None or known[0] is not eraser.adapter:
                known = eraser.adapter, text_map.gram(weights.values())
            grams[name] = known
    erasures.states, erasures.grams = encoded, grams
    erasers = {name: (eraser.adapter, eraser.strength) for name, eraser in loaded.items()}
    return interference(erasers, states, {k: gram for k, (_, gram) in grams.items()}, about)


def conflicts(
    model: Model, erasures: Erasures, loaded: Mapping[str, LoadedEraser], new: Collection[str]
) -> list[str]:
    """One warning for each pair of erasers in conflict of which one is new.

    Two erasers are in conflict if one changes much of the other's concept (`WARN_ABOVE`), or erases
    a concept that the other one's is replaced by.
    """
    found = []
    for name, others in interferences(model, erasures, loaded, new).items():
        for other, share in others.items():
            if share > WARN_ABOVE and (name in new or other in new):
                found.append(
                    f"The eraser {other!r} changes the concept of {name!r} by {share:.0%} of what "
                    "its own eraser does, since each was made without the other. "
                    '`diffusers_erase.stack` with `fusion="gram"` makes one eraser of both.'
                )
    names = {name: {*eraser.adapter.config.names} for name, eraser in loaded.items()}
    for name, eraser in loaded.items():
        targets = [concept.target for concept in eraser.adapter.config.concepts]
        for other in loaded if name in new else new:
            erased = [target for target in targets if target in names[other]]
            if erased and other != name:
                found.append(
                    f"The target of {name!r} is {erased[0]!r}, which {other!r} erases: prompts for "
                    "the one may still show the other. Make one eraser of both, or give it another "
                    "target."
                )
    return found
