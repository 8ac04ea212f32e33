"""One problem, many papers: they differ in what is erased, what is spared and what is held."""

import torch
from torch import Tensor

from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import WORST_CONDITION, Inverse, inverted


def solve(E: Tensor, V: Tensor, K: Tensor, *, hold: Tensor | None = None) -> TextMap:
    """argmin_P  |(I + P) E^T - V^T|^2 + tr(P K P^T),   P Q = 0

    = (V - E)^T E F (F^T (E^T E + K) F)^-1 F^T,  F an orthonormal basis of what is free of Q.

    UCE's edit (arXiv 2308.14761) with W' = W (I + P): every layer that reads the text reads states
    E as it read V before. P does not depend on W; one factorisation serves all layers.

    Args:
        E: states to be read differently, n x width.
        V: what each of them is to be read as, n x width.
        K: how dear every direction is, width x width, positive definite: Grams of what is spared
            and a ridge.
        hold: Q, orthonormal columns, width x h, that P answers with exactly nothing.

    Returns:
        I + P with rank min(n, width).

    Raises:
        ErasureError: a state is not finite, or the system is too ill-conditioned to be solved.
    """
    E, V, K = _finite(E, V, K)
    return _read_as(E, V, reader(E, K, hold))


def solve_within(
    E: Tensor, V: Tensor, K: Tensor, rank: int, *, hold: Tensor | None = None
) -> tuple[TextMap, float]:
    """The best map of a rank, and what it keeps: `solve(...).truncated(rank, met=E^T E + K)`.

    |P S^1/2| = |(V - E)^T E Z|,  S = E^T E + K,  Z Z^T = F (F^T S F)^-1 F^T

    What is cut off is seen before the second half of the solution, which is left to the few
    columns that stay. Arguments and errors are those of `solve`.
    """
    E, V, K = _finite(E, V, K)
    N = Inverse.of(torch.addmm(K, E.T, E), hold)
    best, kept = _read_as(E, V, N.half(E)).truncated(rank)
    return TextMap(best.U, N.whole(best.V.T).T), kept


def _read_as(E: Tensor, V: Tensor, A: Tensor) -> TextMap:
    """I + (V - E)^T A, in as few columns as there are rows or directions."""
    if len(E) <= E.shape[1]:
        return TextMap((V - E).T, A.T)
    return TextMap((V - E).T @ A, torch.eye(E.shape[1], dtype=E.dtype))


def _finite(*several: Tensor) -> list[Tensor]:
    """The same in float64 on the CPU, or an error."""
    found = [x.detach().double().cpu() for x in several]
    if not all(torch.isfinite(x).all() for x in found):
        raise ErasureError(
            "Text states hold values that are not finite numbers; run the text encoder in float32."
        )
    return found


def reader(E: Tensor, K: Tensor, hold: Tensor | None = None) -> Tensor:
    """A = E F (F^T (E^T E + K) F)^-1 F^T, n x width: how much of each row of E a state holds.

    The part of `solve` that does not depend on what the rows are to be read as.
    """
    return inverted(E, torch.addmm(K, E.T, E), hold)


def reader_beside(E: Tensor, N: Inverse) -> Tensor:
    """A = (I + E N E^T)^-1 E N,  N = F (F^T K F)^-1 F^T: `reader`, where many E share one K."""
    half = N.half(E)
    inner = torch.eye(len(E), dtype=E.dtype) + half @ half.T
    return N.whole(torch.cholesky_solve(half, torch.linalg.cholesky(inner)))


def remove(X: Tensor, K: Tensor, *, hold: Tensor | None = None) -> TextMap:
    """argmin_P  tr(P K P^T),   P X^T = -X^T,   P Q = 0

    = -X^T (X N X^T)^-1 X N,  N = F (F^T K F)^-1 F^T: directions X are lost, at the least cost.

    With K the covariance of states and X their covariance with a label this is LEACE (arXiv
    2306.03819): afterwards no linear reader can tell the label.

    Args:
        X: directions, n x width.
        K: as in `solve`.
        hold: as in `solve`.

    Raises:
        ErasureError: as `solve`; or a direction lies among those that are held.
    """
    X, K = (x.detach().double().cpu() for x in (X, K))
    A = inverted(X, K, hold)
    inner = A @ X.T
    outside = (A.norm(dim=1) * K.diagonal().mean() / X.norm(dim=1)).min()
    if outside < 1e-9 or torch.linalg.cond(inner) > WORST_CONDITION:
        raise ErasureError("What is to be removed lies among the prompts that are to be held.")
    return TextMap(-X.T, torch.linalg.solve(inner, A).T)
