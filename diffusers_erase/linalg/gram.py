"""Gram matrices: float64 out of float32 sums, one triangle at a time."""

from math import isqrt

import torch
from torch import Tensor


_BLOCK = 256
"""Columns of a Gram matrix computed at once."""


def lower_gram(rows: Tensor, onto: Tensor | None = None) -> Tensor:
    """The lower block triangle of E^T E, float64 out of float32 sums: half the work.

    It is added to `onto`, in place. `mirrored` fills in the rest.
    """
    width = rows.shape[1]
    found = torch.zeros(width, width, dtype=torch.float64) if onto is None else onto
    for i in range(0, width, _BLOCK):
        found[i : i + _BLOCK, : i + _BLOCK] += rows[:, i : i + _BLOCK].T @ rows[:, : i + _BLOCK]
    return found


def mirrored(lower: Tensor) -> Tensor:
    """The whole symmetric matrix of a lower block triangle, in place."""
    for i in range(_BLOCK, len(lower), _BLOCK):
        lower[:i, i : i + _BLOCK] = lower[i : i + _BLOCK, :i].T
    return lower


def packed(whole: Tensor) -> Tensor:
    """The lower triangle of a symmetric matrix, row by row, float32: width (width + 1) / 2."""
    return torch.cat([row[: i + 1] for i, row in enumerate(whole.float())])


def unpacked(triangle: Tensor) -> Tensor:
    """The symmetric matrix of a lower triangle, float64."""
    width = (isqrt(8 * len(triangle) + 1) - 1) // 2
    found = torch.empty(width, width, dtype=torch.float64)
    for i, row in enumerate(triangle.split(list(range(1, width + 1)))):
        found[i, : i + 1] = row
    for i in range(0, width, _BLOCK):
        corner = found[i : i + _BLOCK, i : i + _BLOCK]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return mirrored(found)
