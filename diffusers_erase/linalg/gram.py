"""Gram matrices: float64 out of float32 sums, one triangle at a time."""

from math import isqrt

import torch
from torch import Tensor


_BLOCK = 256
"""Columns of a Gram matrix computed at once."""


def lower_gram(rows: Tensor) -> Tensor:
    """The lower block triangle of E^T E, float64 out of float32 sums: half the work.

    `mirrored` fills in the rest.
    """
    width = rows.shape[1]
    found = torch.zeros(width, width, dtype=torch.float64)
    for i in range(0, width, _BLOCK):
        found[i : i + _BLOCK, : i + _BLOCK] = rows[:, i : i + _BLOCK].T @ rows[:, : i + _BLOCK]
    return found


def mirrored(lower: Tensor) -> Tensor:
    """The whole symmetric matrix of a lower block triangle, in place."""
    for i in range(_BLOCK, len(lower), _BLOCK):
        lower[:i, i : i + _BLOCK] = lower[i : i + _BLOCK, :i].T
    return lower


def packed(whole: Tensor) -> Tensor:
    """The lower triangle of a symmetric matrix, row by row, float32: width (width + 1) / 2."""
    return whole[torch.ones_like(whole, dtype=torch.bool).tril()].float()


def unpacked(triangle: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle, float64."""
    width = (isqrt(8 * len(triangle) + 1) - 1) // 2
    found = torch.zeros(width, width, dtype=torch.float64)
    found.masked_scatter_(torch.ones(width, width, dtype=torch.bool).tril(), triangle.double())
    return found + found.tril(-1).T
