"""Erasers in closed form: a text map, and its LoRA if the weights it acts on are known."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.editing.edit import edit
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.making.request import (
    Request,
    check_words,
    config_of,
    require_erasable,
)
from diffusers_erase.making.statistics import Statistics
from diffusers_erase.models.architectures import fingerprint, text_weights
from diffusers_erase.models.model import Model
from diffusers_erase.training.targets import Fixed, Target


def solve_eraser(
    model: Model,
    request: Request,
    *,
    weights: Mapping[str, Tensor] | None = None,
    statistics: Callable[[], Statistics] | None = None,
) -> EraserAdapter:
    """Solve for the eraser that is asked for; the denoiser is not run.

    Args:
        model: the base; its denoiser and VAE may be missing.
        request: what is asked for, with an `Edit` as its recipe.
        weights: path -> weight (out x width) of the layers that read the text, if the pipeline has
            no denoiser; without them the eraser is portable.
        statistics: returns those shared with other tries; called after all checks of the request.

    Raises:
        ErasureError: the request or the pipeline does not fit; nothing has been computed then.
    """
    recipe = request.recipe
    assert isinstance(recipe, Edit)
    require_erasable(model)
    if model.found is not None:
        weights = text_weights(model.found)
    if request.target is not None:
        request.target.check(request.concepts, request.vocabulary)
    check_words(model, request)
    shared = statistics() if statistics else Statistics.of(model)
    found = edit(
        shared.texts,
        request.concepts,
        recipe,
        targets=_targets(request.target, request.concepts),
        vocabulary=request.vocabulary,
        keep=request.keep,
        protect=request.protect,
        weights=weights,
        statistics=lambda: shared.general,
        cache=shared.cache,
        encoder=shared.encoder,
        seed=request.seed,
    )
    parameters = {"solution_rank": found.rank, "kept_energy": found.kept, **shared.used}
    return eraser_from_map(model, request, found.choices, found.map, weights, parameters)


def eraser_from_map(
    model: Model,
    request: Request,
    choices: Sequence[ErasedConcept],
    map: TextMap,
    weights: Mapping[str, Tensor] | None,
    parameters: Mapping[str, Any],
) -> EraserAdapter:
    """The eraser of a text map, with the equal LoRA for these weights if there are any."""
    copies = (Lora(map.factors(weights)),) if weights else ()
    concept = request.concepts[0].name
    config = config_of(
        model,
        request,
        choices,
        rank=map.rank,
        dtype="float16",  # of the LoRA; the map itself is float32
        parameters=parameters,
        fingerprint={
            **(fingerprint(model.found) if model.found is not None else {}),
            "text": {"prompt": concept, "state": model.text_fingerprint(concept)},
        },
    )
    return EraserAdapter((*copies, map), config)


def _targets(target: Target | None, concepts: Sequence[Concept]) -> tuple[str | None, ...] | None:
    """One for each concept, or None where the recipe is to choose."""
    if target is None:
        return None
    if not isinstance(target, Fixed) or target.whole:
        raise ErasureError(
            "A closed-form recipe takes a word as its target, or chooses by itself; "
            f"got {target!r}."
        )
    return target.for_each(concepts)
