"""Directions that are held, and the solutions that leave them alone."""

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


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
