"""Bounds on products of factors: finite factors can have an infinite product."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


Product = Callable[[Tensor], Tensor]
"""x (in x n) -> W x (out x n) with a layer's weight W."""

LARGEST = 1e15
"""Largest change of a weight; the squares of a layer's changes sum to a finite float32."""


def product_with(weight: Tensor) -> Product:
    """The product with a weight, in float32 or more, where the weight is."""
    W = weight.detach()
    wide = torch.promote_types(W.dtype, torch.float32)
    return lambda x: W.to(wide) @ x.to(W.device, wide)


def require_finite(A: Tensor, B: Tensor, what: str) -> None:
    """Raise if A (rank x in), B (out x rank) or B A may not be finite in float32; names `what`.

    |B A|_ij <= |B_i| |A_j|, with rows of B and columns of A, bounds the product.
    """
    if not (A.isfinite().all() and B.isfinite().all()):
        raise ErasureError(f"{what} holds values that are not finite numbers.")
    columns, rows = _largest_norm(A, 0), _largest_norm(B, 1)
    largest = max(columns, rows, columns * rows)
    if not largest <= LARGEST:
        raise ErasureError(
            f"{what} holds values, or products of values, of up to {largest:.0e}; {LARGEST:.0e} "
            "is the most that an eraser may hold."
        )


def _largest_norm(x: Tensor, dim: int) -> float:
    return float(x.double().norm(dim=dim).amax()) if x.numel() else 0.0
