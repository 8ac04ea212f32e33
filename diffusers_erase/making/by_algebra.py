"""An eraser in closed form: texts in, a text map out, and its LoRA if there is a denoiser."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusers_erase.adapter import EraserAdapter
from diffusers_erase.cache import TensorCache, digest
from diffusers_erase.concepts import text_fingerprint
from diffusers_erase.config import Choice
from diffusers_erase.crossattention import (
    denoiser_of,
    denoiser_or_none,
    fingerprint,
    text_weights,
)
from diffusers_erase.editing.edit import edit
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.editing.rows import texts_of
from diffusers_erase.errors import ErasureError
from diffusers_erase.making.order import Order, check_bare, config_of, warn_of_unknown_words
from diffusers_erase.textmap import TextMap
from diffusers_erase.training.targets import Fixed, Target


def solved(
    pipe: Any,
    order: Order,
    *,
    weights: Mapping[str, Tensor] | None = None,
    cache: Path | None = None,
) -> EraserAdapter:
    """Carry an order out by algebra; see `erase`. The denoiser is not run.

    Args:
        pipe: a pipeline, perhaps without a denoiser and a VAE.
        order: what to erase.
        weights: path -> weight of the layers that read the text, if not the pipeline's denoiser's.
        cache: a folder for statistics of long lists of prompts.
    """
    recipe = order.recipe
    if not isinstance(recipe, Edit):
        raise TypeError(f"'{recipe.name}' is not solved but trained.")
    if denoiser_or_none(pipe) is not None:
        check_bare(pipe)
        weights = text_weights(denoiser_of(pipe))
    if order.target is not None:
        order.target.check(order.concepts)
    warn_of_unknown_words(pipe, order)
    encoders = [getattr(pipe, f"text_encoder{number}", None) for number in ("", "_2", "_3")]
    found = edit(
        texts_of(pipe),
        order.concepts,
        recipe,
        targets=_targets(order.target, len(order.concepts)),
        vocabulary=order.vocabulary,
        keep=order.keep,
        protect=order.protect,
        weights=weights,
        cache=TensorCache(cache) if cache else None,
        encoder=digest(*(e for e in encoders if e is not None)) if cache else "",
        seed=order.seed,
    )
    parameters = {"solution_rank": found.rank, "kept_energy": found.kept}
    return mapped(pipe, order, found.choices, found.map, weights, parameters)


def mapped(
    pipe: Any,
    order: Order,
    choices: Sequence[Choice],
    map: TextMap,
    weights: Mapping[str, Tensor] | None,
    parameters: Mapping[str, Any],
) -> EraserAdapter:
    """The eraser that a text map is, with its LoRA for these weights if there are any."""
    factors = map.factors(weights) if weights else {}
    there, concept = denoiser_or_none(pipe) is not None, order.concepts[0].name
    config = config_of(
        pipe,
        order,
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
