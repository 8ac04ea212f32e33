"""The linear problems behind all closed-form recipes, and their exact solutions."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import WORST_CONDITION, Inverse


def solve(E: Tensor, V: Tensor, K: Tensor, *, protect: Tensor | None = None) -> TextMap:
    """argmin_P  |(I + P) E^T - V^T|^2 + tr(P K P^T),   P Q = 0

    = (V - E)^T E F (F^T (E^T E + K) F)^-1 F^T,  F an orthonormal basis of the complement of Q.

    UCE's edit (arXiv 2308.14761) with W' = W (I + P): the output of every text layer for E becomes
    its output for V. P does not depend on W; one factorisation serves all layers.

    E are the text states to be replaced and V their replacements, n x width; K is a quadratic
    penalty on changing each text direction (width x width, positive definite): Gram matrices of
    the states to be kept, and a ridge. Q (`protect`) has orthonormal columns, width x h.

    Returns:
        I + P, P of rank min(n, width) at most.

    Raises:
        ErasureError: a state is not finite, or the system is too ill-conditioned to be solved.
    """
    E, V, K = _finite(E, V, K)
    return _map_through(E, V, Inverse.of(torch.addmm(K, E.T, E), protect))


def solve_within(
    E: Tensor,
    V: Tensor,
    K: Tensor,
    rank: int,
    *,
    protect: Tensor | None = None,
    enough: float = 1.0,
) -> tuple[TextMap, float]:
    """`solve(...).truncated(rank, E^T E + K, enough=enough)`: the best map, energy kept.

    |P S^1/2| = |(V - E)^T E Z|,  S = E^T E + K,  Z Z^T = F (F^T S F)^-1 F^T

    The rank is cut before the second half of the solution, which is then computed for the remaining
    columns alone. Arguments and errors are those of `solve`.
    """
    E, V, K = _finite(E, V, K)
    N = Inverse.of(torch.addmm(K, E.T, E), protect)
    best, kept = _map_through(E, V, N.half).truncated(rank, enough=enough)
    return TextMap(best.U, N.whole(best.V.T).T), kept


def _map_through(E: Tensor, V: Tensor, N: Callable[[Tensor], Tensor]) -> TextMap:
    """I + (V - E)^T N(E), with min(n, width) columns; N acts on rows, as many as columns."""
    if len(E) <= E.shape[1]:
        return TextMap((V - E).T, N(E).T)
    return TextMap(N((V - E).T @ E), torch.eye(E.shape[1], dtype=E.dtype))


def _finite(*tensors: Tensor) -> list[Tensor]:
    """The tensors in float64 on the CPU; raises where one is not finite."""
    found = [x.detach().double().cpu() for x in tensors]
    if not all(x.sum().isfinite() for x in found):
        raise ErasureError(
            "Text states hold values that are not finite numbers; run the text encoder in float32."
        )
    return found


def ridge_coefficients(E: Tensor, K: Tensor, protect: Tensor | None = None) -> Tensor:
    """A = E F (F^T (E^T E + K) F)^-1 F^T, n x width: A e are ridge coefficients of e on the rows.

    The part of `solve` that does not depend on V.
    """
    return Inverse.of(torch.addmm(K, E.T, E), protect)(E)


def ridge_coefficients_given(E: Tensor, N: Inverse) -> Tensor:
    """A = (I + E N E^T)^-1 E N,  N = F (F^T K F)^-1 F^T: the same where many E share one K."""
    half = N.half(E)
    inner = torch.eye(len(E), dtype=E.dtype) + half @ half.T
    return N.whole(torch.cholesky_solve(half, torch.linalg.cholesky(inner)))


def remove(X: Tensor, K: Tensor, *, protect: Tensor | None = None) -> TextMap:
    """argmin_P  tr(P K P^T),   P X^T = -X^T,   P Q = 0

    = -X^T (X N X^T)^-1 X N,  N = F (F^T K F)^-1 F^T: directions X vanish, at the least cost.

    With K the covariance of states and X their covariance with a label this is LEACE (arXiv
    2306.03819): afterwards no linear classifier can tell the label.

    Raises:
        ErasureError: as `solve`; or a direction lies in the span of the protected ones.
    """
    X, K = (x.detach().double().cpu() for x in (X, K))
    A = Inverse.of(K, protect)(X)
    inner = A @ X.T
    outside = (A.norm(dim=1) * K.diagonal().mean() / X.norm(dim=1)).min()
    if outside < 1e-9 or torch.linalg.cond(inner) > WORST_CONDITION:
        raise ErasureError(
            "What is to be removed lies in the span of the protected prompts; protect fewer."
        )
    return TextMap(-X.T, torch.linalg.solve(inner, A).T)
