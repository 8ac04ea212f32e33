"""`debias()` makes an eraser that balances attributes of a concept, such as the places of boats."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from diffusers_erase.concepts import Concept, Vocabulary, prompts_naming
from diffusers_erase.editing.blending import Blend
from diffusers_erase.editing.own_prompts import OwnStatistics
from diffusers_erase.editing.prior import kept_moments
from diffusers_erase.editing.recipes import CLOSED_FORM, Edit
from diffusers_erase.editing.solvers import Problem
from diffusers_erase.editing.solving import ridge_coefficients
from diffusers_erase.editing.texts import texts_of
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.making.by_algebra import eraser_from_map
from diffusers_erase.making.request import (
    Request,
    as_concepts,
    as_strings,
    as_vocabulary,
    require_erasable,
)
from diffusers_erase.models.architectures import text_weights
from diffusers_erase.models.model import Model


DEBIAS = replace(CLOSED_FORM, name="debias", choose="given", prompts=4, keep_weight=0.3)
"""UCE's debiasing (arXiv 2308.14761) in context; the tokenizer's own words are kept too."""

Observe = Callable[[EraserAdapter | None], Sequence[float]]
"""An eraser (None: the base) -> the share of pictures with each attribute."""


def debias(
    pipe: Any,
    concept: str | Concept,
    attributes: Sequence[str],
    observe: Observe,
    *,
    goal: Sequence[float] | None = None,
    vocabulary: Sequence[str] | Vocabulary | None = None,
    keep: Sequence[str] = (),
    rounds: int = 10,
    step: float = 1.5,
    tolerance: float = 0.05,
    recipe: Edit = DEBIAS,
) -> EraserAdapter:
    """W c -> W (c + Σ_k a_k (c_k - c)),   a_k <- a_k + step (goal_k - share_k)

    UCE's debiasing (arXiv 2308.14761): c is the concept without an attribute, c_k the same words
    with one. The system is factorised once; `observe` draws and counts in every round, and the
    best round is returned. A sum of attributes is no mixture of them: one bias can be removed, but
    hardly many shares set.

    Args:
        pipe: a pipeline without erasures.
        concept: the concept whose pictures are balanced.
        attributes: words (`red`), or phrases with `{}` for the concept (`{} at night`).
        observe: draws with an eraser on (or without: None), and counts.
        goal: the share each attribute should have; equal shares if left out.
        vocabulary: other concepts, which are kept.
        keep: prompts that stay as they are, approximately.
        rounds: largest number of rounds.
        step: of the amounts a_k, for a share that is off by one.
        tolerance: largest difference of a share from its goal at which the rounds end.
        recipe: numbers of the edit.

    Raises:
        ErasureError: fewer than two attributes, a goal that is no share, a pipeline with erasers
            loaded, or counts that are not one share for each attribute.
    """
    words = as_vocabulary(vocabulary)
    names = as_strings("attributes", attributes)
    request = Request(
        as_concepts(concept), recipe, words, None, as_strings("keep", keep), protect=(), seed=0
    )
    model = Model.of(pipe)
    require_erasable(model)
    wanted = _goal(goal, len(names))
    if rounds < 1:
        raise ErasureError(f"`rounds` must be positive; got {rounds}.")
    at = _erasers(model, request, names)
    amounts, best, least = [0.0] * len(names), None, math.inf
    for _ in range(rounds + 1):
        eraser = at(amounts) if any(amounts) else None
        shares = _shares(observe(eraser), names)
        off = max(abs(w - s) for w, s in zip(wanted, shares, strict=True))
        if eraser is not None and off < least:
            results = {f"share of {name}": s for name, s in zip(names, shares, strict=True)}
            best, least = replace(eraser, config=replace(eraser.config, results=results)), off
        if off <= tolerance:
            break
        amounts = [a + step * (w - s) for a, w, s in zip(amounts, wanted, shares, strict=True)]
    if best is None:
        raise ErasureError(
            f"'{request.concepts[0].name}' has these shares within {tolerance} already; there is "
            "nothing to do."
        )
    return best


def _erasers(
    model: Model, request: Request, names: Sequence[str]
) -> Callable[[Sequence[float]], EraserAdapter]:
    """A function: amounts of the attributes -> the eraser that adds them to the concept."""
    recipe, texts, (concept,) = request.recipe, texts_of(model), request.concepts
    assert isinstance(recipe, Edit)
    blend = Blend.of(texts, concept, names, recipe.prompts)
    words = request.vocabulary.others([concept]) if request.vocabulary else ()
    listed = ["", *request.keep, *prompts_naming(words, concept.kind)]
    general = OwnStatistics.of(texts).without(texts).gram if recipe.general else None
    S = kept_moments(texts, listed, general=general)
    Q = row_space(texts.encode([""])) if recipe.protect_null else None
    problem = Problem.of(
        blend.E, blend.E, S, keep_weight=recipe.keep_weight, ridge=recipe.ridge, protect=Q
    )
    A = ridge_coefficients(problem.E, problem.penalty, Q)
    weights = text_weights(model.denoiser)

    def at(amounts: Sequence[float]) -> EraserAdapter:
        T = TextMap((blend.at(amounts) - blend.E).T @ A, torch.eye(A.shape[1], dtype=A.dtype))
        map, kept = T.truncated(recipe.rank * texts.count, second_moment=problem.second_moment)
        scores = dict(zip(names, amounts, strict=True))
        chosen = ErasedConcept.of(concept, concept.name, choice="balanced", scores=scores)
        return eraser_from_map(model, request, [chosen], map, weights, {"kept_energy": kept})

    return at


def _goal(goal: Sequence[float] | None, count: int) -> list[float]:
    wanted = [1 / max(count, 1)] * count if goal is None else [float(share) for share in goal]
    if len(wanted) != count or not all(0 <= w <= 1 for w in wanted) or sum(wanted) > 1 + 1e-9:
        raise ErasureError(
            f"`goal` is one share for each of the {count} attributes, at most 1 together; "
            f"got {wanted}."
        )
    return wanted


def _shares(found: Sequence[float], names: Sequence[str]) -> list[float]:
    shares = [float(share) for share in found]
    if len(shares) != len(names) or not all(0 <= s <= 1 for s in shares):
        raise ErasureError(
            f"`observe` returns a share (0 to 1) for each of {', '.join(names)}; got {shares}."
        )
    return shares
