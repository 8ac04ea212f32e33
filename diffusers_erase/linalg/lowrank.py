"""The best low-rank form of a change to a weight (Eckart-Young)."""

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


def split(change: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, float]:
    """The best factors A (r x in), B (out x r) of a change, and the share of its energy they keep.

    argmin_{rank B A <= r}  |D - B A|_F^2;   kept = |B A|^2 / |D|^2

    D is out x in. Without a rank it is D's numerical rank in float32, and B A = D up to rounding.

    Raises:
        ErasureError: a rank below 1.
    """
    left, sizes, right = torch.linalg.svd(change.float(), full_matrices=False)
    return _first(left, sizes, right, rank, max(change.shape))


def compressed(A: Tensor, B: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, float]:
    """`split` of a change B A that is given by its factors, by the SVD of a small core.

    B = Q_b R_b and A^T = Q_a R_a, so B A = Q_b (R_b R_a^T) Q_a^T. Without a rank the product stays
    the same up to rounding, in as few columns as it has.
    """
    Qb, Rb = torch.linalg.qr(B.double())
    Qa, Ra = torch.linalg.qr(A.double().T)
    left, sizes, right = torch.linalg.svd(Rb @ Ra.T, full_matrices=False)
    return _first(Qb @ left, sizes, right @ Qa.T, rank, max(len(B), A.shape[1]))


def _first(
    left: Tensor, sizes: Tensor, right: Tensor, rank: int | None, width: int
) -> tuple[Tensor, Tensor, float]:
    if rank is not None and rank < 1:
        raise ErasureError(f"A rank is 1 or more; got {rank}.")
    energy = sizes.square()
    if rank is None:
        rank = int((sizes > sizes.max() * width * torch.finfo(torch.float32).eps).sum())
    rank = max(1, min(rank, len(sizes)))
    root = sizes[:rank].sqrt()
    kept = float(energy[:rank].sum() / energy.sum()) if energy.any() else 1.0
    return (root[:, None] * right[:rank]).float(), (left[:, :rank] * root).float(), kept
