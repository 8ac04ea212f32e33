"""One problem, many papers: they differ in what is erased, what is spared and what is held."""

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.subspace import WORST_CONDITION, inverted
from diffusers_erase.textmap import TextMap


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
    E, V, K = (x.detach().double().cpu() for x in (E, V, K))
    if not all(torch.isfinite(x).all() for x in (E, V, K)):
        raise ErasureError(
            "Text states hold values that are not finite numbers; run the text encoder in float32."
        )
    A = reader(E, K, hold)
    if len(E) <= E.shape[1]:
        return TextMap((V - E).T, A.T)
    return TextMap((V - E).T @ A, torch.eye(E.shape[1], dtype=E.dtype))


def reader(E: Tensor, K: Tensor, hold: Tensor | None = None) -> Tensor:
    """A = E F (F^T (E^T E + K) F)^-1 F^T, n x width: how much of each row of E a state holds.

    The part of `solve` that does not depend on what the rows are to be read as.
    """
    return inverted(E, E.T @ E + K, hold)


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
