"""An eraser in closed form: texts in, a text map out, and its LoRA if there is a denoiser."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusers_erase.editing.edit import edit
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.editing.token_pairs import texts_of
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import Choice
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.making.request import Request, check_bare, config_of, warn_of_unknown_words
from diffusers_erase.models.architectures import (
    denoiser_of,
    denoiser_or_none,
    fingerprint,
    text_weights,
)
from diffusers_erase.models.text_states import text_fingerprint
from diffusers_erase.storage.tensor_cache import TensorCache, digest
from diffusers_erase.training.targets import Fixed, Target


def solved(
    pipe: Any,
    request: Request,
    *,
    weights: Mapping[str, Tensor] | None = None,
    cache: Path | None = None,
) -> EraserAdapter:
    """Carry an order out by algebra; see `erase`. The denoiser is not run.

    Args:
        pipe: a pipeline, perhaps without a denoiser and a VAE.
        request: what to erase.
        weights: path -> weight of the layers that read the text, if not the pipeline's denoiser's.
        cache: a folder for statistics of long lists of prompts.
    """
    recipe = request.recipe
    if not isinstance(recipe, Edit):
        raise TypeError(f"'{recipe.name}' is not solved but trained.")
    if denoiser_or_none(pipe) is not None:
        check_bare(pipe)
        weights = text_weights(denoiser_of(pipe))
    if request.target is not None:
        request.target.check(request.concepts)
    warn_of_unknown_words(pipe, request)
    encoders = [getattr(pipe, f"text_encoder{number}", None) for number in ("", "_2", "_3")]
    found = edit(
        texts_of(pipe),
        request.concepts,
        recipe,
        targets=_targets(request.target, len(request.concepts)),
        vocabulary=request.vocabulary,
        keep=request.keep,
        protect=request.protect,
        weights=weights,
        cache=TensorCache(cache) if cache else None,
        encoder=digest(*(e for e in encoders if e is not None)) if cache else "",
        seed=request.seed,
    )
    parameters = {"solution_rank": found.rank, "kept_energy": found.kept}
    return mapped(pipe, request, found.choices, found.map, weights, parameters)


def mapped(
    pipe: Any,
    request: Request,
    choices: Sequence[Choice],
    map: TextMap,
    weights: Mapping[str, Tensor] | None,
    parameters: Mapping[str, Any],
) -> EraserAdapter:
    """The eraser that a text map is, with its LoRA for these weights if there are any."""
    factors = map.factors(weights) if weights else {}
    there, concept = denoiser_or_none(pipe) is not None, request.concepts[0].name
    config = config_of(
        pipe,
        request,
        choices,
        rank=map.rank,
        payloads=("lora", "text_map") if factors else ("text_map",),
        parameters=parameters,
        fingerprint={
            **(fingerprint(denoiser_of(pipe)) if there else {}),
            "text": {"prompt": concept, "state": text_fingerprint(pipe, concept)},
        },
    )
    return EraserAdapter(factors, config, map)


def _targets(target: Target | None, count: int) -> tuple[str | None, ...] | None:
    """One for each concept, or None where the recipe is to choose.

    Raises:
        ErasureError: a way to choose that needs pictures in the making.
    """
    if target is None:
        return None
    if not isinstance(target, Fixed) or target.whole:
        raise ErasureError(
            "A closed-form recipe takes a word as its target, or chooses by itself; "
            f"got {target!r}."
        )
    return target.answer if isinstance(target.answer, tuple) else (target.answer,) * count
