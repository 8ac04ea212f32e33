"""Several erasers as one: their exact sum, or the sum after each has been told of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import EraserConfig, versions
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import inverted
from diffusers_erase.linalg.lowrank import compressed
from diffusers_erase.models.architectures import Factors, reads_text


Rest = Literal["sum", "nothing"]
"""What a fusion does to texts of no eraser's concept."""

SPARE, RIDGE = 10.0, 1e-4
"""κ and λ of `fused`; with κ = 1 the rest suffers more than from the plain sum."""


def summed(erasers: Sequence[EraserAdapter]) -> EraserAdapter:
    """W + Σ_i B_i A_i: what all erasers do together, exactly, with the sum of their ranks.

    Two erasers meet one another's states as any others, and each changes them a little: with many
    erasers this adds up (see `fused`).

    Raises:
        ErasureError: there are none, they are for different models, or some are portable while
            others were trained.
    """
    _check(erasers)
    factors: dict[str, Factors] = {}
    if all(eraser.factors for eraser in erasers):
        for path in dict.fromkeys(path for eraser in erasers for path in eraser.factors):
            own = [eraser.factors[path] for eraser in erasers if path in eraser.factors]
            factors[path] = torch.cat([A for A, _ in own]), torch.cat([B for _, B in own], 1)
    maps = [eraser.text_map for eraser in erasers]
    together = None
    if all(maps):
        pairs = [(T.U, T.V) for T in maps if T is not None]
        together = TextMap(torch.cat([U for U, _ in pairs], 1), torch.cat([V for _, V in pairs], 1))
    return EraserAdapter(factors, _config(erasers, factors, together, "sum"), together)


def fused(
    erasers: Sequence[EraserAdapter],
    second_moment: Sequence[Tensor],
    spared: Tensor,
    *,
    rest: Rest = "sum",
    hold: Tensor | None = None,
    spare: float = SPARE,
    ridge: float = RIDGE,
) -> EraserAdapter:
    """argmin_D  Σ_i mean |(D - D_i) E_i|^2 + κ mean |(D - D_0) R|^2 + λ |D - D_0|^2,   D Q = D_0 Q

    On the states of its own concept every eraser does what it did alone, and on those of the others
    nothing. With M = Σ_j G_j + κ S + λ I and F a basis of what is free of Q,

        D_0 = Σ_i D_i:  A_i' = A_i (I - (Σ_{j≠i} G_j) F (F^T M F)^-1 F^T)
        D_0 = 0:        A_i' = A_i G_i F (F^T M F)^-1 F^T

    The second is MACE's closed-form fusion (arXiv 2403.06135), with held prompts, which the plain
    form gives up; it spares the rest more, and erases less. Every B stays, every A is rewritten, so
    this is a LoRA with the sum of the ranks, for trained and solved erasers alike. Layers that do
    not read the text are summed.

    Args:
        erasers: made from the same base.
        second_moment: G_i = E[e e^T], width x width, of the text states that each eraser is for.
        spared: S = E[r r^T], width x width, of those that none of them is to change.
        rest: what is done to those: what the plain `sum` does (D_0 = Σ_i D_i), or `nothing`
            (D_0 = 0).
        hold: Q, orthonormal columns, width x h, for which fusion changes nothing.
        spare: κ.
        ridge: λ, relative to the mean square of what is solved for.

    Raises:
        ErasureError: as `summed`; or not one G for each eraser.
    """
    _check(erasers)
    if len(second_moment) != len(erasers):
        raise ErasureError(
            f"{len(erasers)} erasers need as many second moments; got {len(second_moment)}."
        )
    own = [G.double().cpu() for G in second_moment]
    together = torch.stack(own).sum(0)
    M = together + spare * spared.double().cpu()
    M = M + ridge * M.diagonal().mean() * torch.eye(len(M), dtype=M.dtype)
    if rest == "sum":
        told = [torch.eye(len(M), dtype=M.dtype) - inverted(together - G, M, hold) for G in own]
    else:
        told = [inverted(G, M, hold) for G in own]
    fusion = summed([_through(eraser, N) for eraser, N in zip(erasers, told, strict=True)])
    return replace(fusion, config=replace(fusion.config, recipe="gram fusion"))


def held(eraser: EraserAdapter, hold: Tensor) -> EraserAdapter:
    """D -> D (I - Q Q^T): what is held, Q (orthonormal columns), is answered by nothing."""
    return _through(eraser, torch.eye(len(hold), dtype=hold.dtype) - hold @ hold.T)


def compact(eraser: EraserAdapter, rank: int | None = None) -> tuple[EraserAdapter, float]:
    """The same change in as few columns as it has, or its best form of a rank; and what is kept.

    `argmin_{rank D' <= r} |D - D'|` for every layer; of a text map, with its own energy.
    """
    split_up = {path: compressed(*pair, rank) for path, pair in eraser.factors.items()}
    energy = [(float((B @ A).square().sum()), kept) for A, B, kept in split_up.values()]
    T, kept_of_map = eraser.text_map, 1.0
    if T is not None:
        A, B, kept_of_map = compressed(T.V.T, T.U, rank)
        T = TextMap(B.double(), A.double().T)
    total = sum(size / kept for size, kept in energy)
    kept = sum(size for size, _ in energy) / total if total else kept_of_map
    factors = {path: (A, B) for path, (A, B, _) in split_up.items()}
    ranks = [len(A) for A, _ in factors.values()] or [T.rank if T else 0]
    config = replace(eraser.config, rank=max(ranks))
    return EraserAdapter(factors, config, T), min(kept, kept_of_map)


def scaled(eraser: EraserAdapter, strength: float) -> EraserAdapter:
    """The eraser that at strength 1 does what this one does at `strength`."""
    T = eraser.text_map
    factors = {path: (A, strength * B) for path, (A, B) in eraser.factors.items()}
    return replace(eraser, factors=factors, text_map=T and TextMap(strength * T.U, T.V))


def interference(
    erasers: Mapping[str, tuple[EraserAdapter, float]],
    states: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> dict[str, dict[str, float]]:
    """I(j -> i) = |s_j D_j E_i| / |s_i D_i E_i|  over all layers that read the text

    How much another eraser does to the states of a concept, as a share of what its own eraser does
    to them; nothing is sampled.

    Args:
        erasers: name i -> eraser D_i, and its strength s_i.
        states: name i -> E_i, N x width, text states of the eraser's concept.
        weights: path -> weight, out x width; asked for erasers that are text maps alone.

    Returns:
        Name i -> name j of every other eraser -> I(j -> i); without erasers of strength zero.
    """
    E = torch.cat([states[name].float().cpu() for name in erasers])
    sizes = [len(states[name]) for name in erasers]
    done: dict[str, dict[str, float]] = {}
    for name, (eraser, strength) in erasers.items():
        factors = eraser.factors or (eraser.text_map and eraser.text_map.factors(weights)) or {}
        squares = torch.zeros(len(E))
        for path, (A, B) in factors.items():
            if reads_text(path):
                squares += ((E @ A.T) @ B.T).square().sum(1)
        sums = [float(part.sum()) for part in squares.split(sizes)]
        done[name] = {i: abs(strength) * x**0.5 for i, x in zip(erasers, sums, strict=True)}
    return {
        i: {j: done[j][i] / done[i][i] for j in erasers if j != i and done[j][j]}
        for i in erasers
        if done[i][i]
    }


def _through(eraser: EraserAdapter, N: Tensor) -> EraserAdapter:
    """D -> D N in the layers that read the text, by their A alone."""
    factors = {
        path: ((A.double() @ N).float() if reads_text(path) else A, B)
        for path, (A, B) in eraser.factors.items()
    }
    T = eraser.text_map
    return replace(eraser, factors=factors, text_map=T and TextMap(T.U, N.T @ T.V))


def _check(erasers: Sequence[EraserAdapter]) -> None:
    if not erasers:
        raise ErasureError("There is no eraser to stack.")
    portable = [e.config.title for e in erasers if not e.factors]
    trained = [e.config.title for e in erasers if e.text_map is None]
    if portable and trained:
        raise ErasureError(
            f"The eraser of '{portable[0]}' is portable and that of '{trained[0]}' was trained for "
            "one model; load them one after the other, or make the first one with its pipeline."
        )
    shapes: dict[str, tuple[int, int]] = {}
    for eraser in erasers:
        for path, (A, B) in eraser.factors.items():
            shape = len(B), A.shape[1]
            if shapes.setdefault(path, shape) != shape:
                raise ErasureError(
                    f"The erasers are for different models: '{path}' is "
                    f"{' x '.join(map(str, shapes[path]))} to one of them and "
                    f"{' x '.join(map(str, shape))} to that of '{eraser.config.title}'."
                )
    widths = {T.width for T in (e.text_map for e in erasers) if T is not None}
    if len(widths) > 1:
        several = " and ".join(map(str, sorted(widths)))
        raise ErasureError(f"The erasers are for texts of different widths: {several}.")


def _config(
    erasers: Sequence[EraserAdapter],
    factors: dict[str, Factors],
    together: TextMap | None,
    recipe: str,
) -> EraserConfig:
    configs = [eraser.config for eraser in erasers]
    ranks = [len(A) for A, _ in factors.values()]
    return EraserConfig(
        concepts=tuple(concept for c in configs for concept in c.concepts),
        recipe=recipe,
        parameters={
            "erasers": [
                {"names": [x.name for x in c.concepts], "recipe": c.recipe} for c in configs
            ]
        },
        base_model=configs[0].base_model,
        fingerprint=configs[0].fingerprint,
        rank=max(ranks) if ranks else together.rank if together else 0,
        payloads=(*(("lora",) if factors else ()), *(("text_map",) if together else ())),
        versions=versions(),
    )
