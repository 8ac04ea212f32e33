"""Directions that are held, and the solutions that leave them alone."""

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


WORST_CONDITION = 1e13
"""Beyond this too few of float64's sixteen digits are left."""


def row_space(states: Tensor) -> Tensor:
    """Orthonormal basis of the span of N states within their numerical rank, width x n, float64.

    Raises:
        ErasureError: the states leave no direction free.
    """
    rows = states.detach().double().cpu().reshape(-1, states.shape[-1])
    _, sizes, vectors = torch.linalg.svd(rows, full_matrices=False)
    kept: Tensor = vectors[sizes > 1e-6 * sizes.max()].T
    if kept.shape[1] >= rows.shape[1]:
        raise ErasureError(
            f"The prompts to hold span all {rows.shape[1]} dimensions of the text; "
            "name fewer of them."
        )
    return kept


def free(x: Tensor, Q: Tensor) -> Tensor:
    """The part of the rows outside the span of Q, x (I - Q Q^T), taken twice against rounding."""
    once = x - (x @ Q) @ Q.T
    twice: Tensor = once - (once @ Q) @ Q.T
    return twice


def inverted(E: Tensor, M: Tensor, hold: Tensor | None = None) -> Tensor:
    """E F (F^T M F)^-1 F^T, n x width, with F an orthonormal basis of what is free of `hold`.

    Args:
        E: rows, n x width, float64.
        M: width x width, positive definite.
        hold: Q, orthonormal columns, width x h, that the result answers with exactly nothing.

    Raises:
        ErasureError: M is too ill-conditioned there.
    """
    Q = torch.zeros(E.shape[1], 0, dtype=E.dtype) if hold is None else hold.to(E)
    inside = free(free(M, Q).T, Q)
    inside += Q @ Q.T * M.diagonal().mean()  # held directions are answered by nothing, any way
    L, failed = torch.linalg.cholesky_ex((inside + inside.T) / 2)
    pivots = L.diagonal()
    condition = float("inf") if failed else float((pivots.max() / pivots.min()).square())
    if not condition < WORST_CONDITION:
        raise ErasureError(
            f"The system is too ill-conditioned to be solved (condition number at least "
            f"{condition:.0e}): raise the ridge, or leave out prompts that repeat one another."
        )
    return free(torch.cholesky_solve(free(E, Q).T, L).T, Q)
