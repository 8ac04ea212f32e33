"""Several erasers as one: their exact sum, or a fusion that keeps each from the others' texts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import EraserConfig, versions
from diffusers_erase.eraser.payloads import PAYLOADS
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import Inverse
from diffusers_erase.models.architectures import reads_text


Rest = Literal["sum", "nothing"]
"""The change that a fusion makes to texts about none of the erased concepts."""

KEEP, RIDGE = 15.0, 1e-4
"""κ and λ of `fused`; with κ = 1 the rest suffers more than from the plain sum, with κ = 20 more of
the erased concepts is left beside other things."""


def summed(erasers: Sequence[EraserAdapter]) -> EraserAdapter:
    """W + Σ_i B_i A_i: the exact sum of all erasers' changes, with the sum of their ranks.

    Each eraser also changes the text states of the others' concepts a little; see `fused`.

    Raises:
        ErasureError: there are none, they are for different models, or some are portable while
            others were trained.
    """
    if not erasers:
        raise ErasureError("There is no eraser to stack.")
    each = {name: [x for e in erasers for x in e.payloads if x.name == name] for name in PAYLOADS}
    payloads = [PAYLOADS[k].summed(own) for k, own in each.items() if len(own) == len(erasers)]
    if not payloads:
        portable = next(e.config.title for e in erasers if not e.factors)
        trained = next(e.config.title for e in erasers if e.text_map is None)
        raise ErasureError(
            f"The eraser of '{portable}' is portable and that of '{trained}' was trained for one "
            "model; load them one after the other, or make the first one with its pipeline."
        )
    return EraserAdapter(tuple(payloads), _config(erasers, payloads[-1].rank))


def fused(
    erasers: Sequence[EraserAdapter],
    second_moment: Sequence[Tensor],
    kept_moment: Tensor,
    *,
    rest: Rest = "nothing",
    protect: Tensor | None = None,
    keep: float = KEEP,
    ridge: float = RIDGE,
) -> EraserAdapter:
    """argmin_D  Σ_i mean |(D - D_i) E_i|^2 + κ mean |(D - D_0) R|^2 + λ |D - D_0|^2,   D Q = D_0 Q

    On the states of its own concept every eraser does what it did alone, and on those of the others
    nothing. With M = Σ_j G_j + κ S + λ I and F a basis of what is free of Q,

        D_0 = Σ_i D_i:  A_i' = A_i (I - (Σ_{j≠i} G_j) F (F^T M F)^-1 F^T)
        D_0 = 0:        A_i' = A_i G_i F (F^T M F)^-1 F^T

    The second is MACE's closed-form fusion (arXiv 2403.06135) with protected prompts; it keeps the
    rest more, two things in one picture most of all, and erases a little less. Every B stays and
    every A is rewritten, so this is a LoRA with the sum of the ranks, for trained and solved
    erasers alike. Other layers are summed.

    Args:
        erasers: made from the same base.
        second_moment: G_i = E[e e^T], width x width, of the text states that each eraser is for.
        kept_moment: S = E[r r^T], width x width, of those that none of them is to change.
        rest: what is done to those: `nothing` (D_0 = 0), or what the plain `sum` does
            (D_0 = Σ_i D_i), with all the harm of it.
        protect: Q, orthonormal columns, width x h, for which fusion changes nothing.
        keep: κ.
        ridge: λ, relative to the mean square of what is solved for.

    Raises:
        ErasureError: as `summed`; or not one G for each eraser.
    """
    if len(second_moment) != len(erasers):
        raise ErasureError(
            f"{len(erasers)} erasers need as many second moments; got {len(second_moment)}."
        )
    own = [G.double().cpu() for G in second_moment]
    together = torch.stack(own).sum(0)
    M = together + keep * kept_moment.double().cpu()
    M = M + ridge * M.diagonal().mean() * torch.eye(len(M), dtype=M.dtype)
    N = Inverse.of(M, protect)
    maps = [
        torch.eye(len(M), dtype=M.dtype) - N(together - G) if rest == "sum" else N(G) for G in own
    ]
    fusion = summed([_through(eraser, X) for eraser, X in zip(erasers, maps, strict=True)])
    return replace(fusion, config=replace(fusion.config, recipe="gram fusion"))


def protected(eraser: EraserAdapter, protect: Tensor) -> EraserAdapter:
    """D -> D (I - Q Q^T): states spanned by Q (orthonormal columns) do not change, in float32."""
    return _through(eraser, torch.eye(len(protect), dtype=protect.dtype) - protect @ protect.T)


def compact(eraser: EraserAdapter, rank: int | None = None) -> tuple[EraserAdapter, float]:
    """argmin_{rank D' <= r} |D - D'|  for every layer, and the share of the energy that is kept.

    Of a text map if there is one; its copies follow. Without a rank the change stays the same, in
    as few columns as it has.
    """
    *copies, source = eraser.payloads
    thin, kept = source.compact(rank)
    if isinstance(thin, TextMap):
        Q = torch.linalg.qr(thin.V).Q
        copies = [copy.through(Q @ Q.T).compact(None)[0] for copy in copies]
    config = replace(eraser.config, rank=thin.rank)
    return EraserAdapter((*copies, thin), config), kept


def scaled(eraser: EraserAdapter, strength: float) -> EraserAdapter:
    """The eraser that at strength 1 does what this one does at `strength`."""
    return replace(eraser, payloads=tuple(x.scaled(strength) for x in eraser.payloads))


def interference(
    erasers: Mapping[str, tuple[EraserAdapter, float]],
    states: Mapping[str, Tensor],
    grams: Mapping[str, Tensor],
    about: Collection[str] | None = None,
) -> dict[str, dict[str, float]]:
    """I(j -> i) = |s_j D_j E_i| / |s_i D_i E_i|  over all layers that read the text

    The change of a concept's states by another eraser, as a share of that by its own eraser.

    `erasers` is name i -> D_i and s_i, `states` name i -> E_i (N x width), and `grams` name ->
    `TextMap.gram` of those with a text map. Returns name i -> name j of every other eraser ->
    I(j -> i), without erasers of strength zero; with `about` only pairs that one of these is in.
    """
    done: dict[str, dict[str, float]] = {}  # eraser -> concept -> |s_j D_j E_i|
    for name, (eraser, strength) in erasers.items():
        everything = about is None or name in about
        those = [i for i in erasers if everything or i in (about or ()) or i == name]
        E = torch.cat([states[i].float().cpu() for i in those])
        parts = _squares(eraser, E, grams.get(name)).split([len(states[i]) for i in those])
        sizes = {i: float(x.sum().clamp(min=0)) for i, x in zip(those, parts, strict=True)}
        done[name] = {i: abs(strength) * size**0.5 for i, size in sizes.items()}
    return {
        i: {j: done[j][i] / done[i][i] for j in erasers if j != i and i in done[j] and done[j][j]}
        for i in erasers
        if done[i][i]
    }


def _squares(eraser: EraserAdapter, E: Tensor, gram: Tensor | None) -> Tensor:
    """|D e|^2 of each row e of E, over all layers that read the text."""
    T = eraser.text_map
    if T is not None and gram is not None:
        X = E @ T.V.float()
        return ((X @ gram.float()) * X).sum(1)
    squares = torch.zeros(len(E))
    for path, (A, B) in eraser.factors.items():
        if reads_text(path):
            X = E @ A.T
            squares += ((X @ (B.T @ B)) * X).sum(1)
    return squares


def _through(eraser: EraserAdapter, N: Tensor) -> EraserAdapter:
    """D -> D N in the layers that read the text, N width x width."""
    return replace(eraser, payloads=tuple(x.through(N) for x in eraser.payloads))


def _config(erasers: Sequence[EraserAdapter], rank: int) -> EraserConfig:
    configs = [eraser.config for eraser in erasers]
    dtypes = {c.dtype for c in configs}
    parts = [{"names": [x.name for x in c.concepts], "recipe": c.recipe} for c in configs]
    return EraserConfig(
        concepts=tuple(concept for c in configs for concept in c.concepts),
        recipe="sum",
        parameters={"erasers": parts},
        base_model=configs[0].base_model,
        fingerprint=configs[0].fingerprint,
        rank=rank,
        dtype=configs[0].dtype if len(dtypes) == 1 else "float32",
        versions=versions(),
    )
