"""Random vectors in a shell around others."""

import torch
from torch import Tensor


def shell(
    rows: Tensor, copies: int, *, cosine: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """|e| (s e/|e| + sqrt(1 - s^2) z),  s ~ U[cosine], z a random direction orthogonal to e

    Random states around each row, which RealEra erases too (arXiv 2410.09140, reconstructed).
    n * copies x width, the copies of a row one after the other.
    """
    e = rows.repeat_interleave(copies, 0)
    size = e.norm(dim=1, keepdim=True)
    unit = torch.nn.functional.normalize(e, dim=1)
    z = torch.randn(e.shape, generator=generator, dtype=e.dtype)
    z = torch.nn.functional.normalize(z - (z * unit).sum(1, keepdim=True) * unit, dim=1)
    low, high = cosine
    s = low + (high - low) * torch.rand(len(e), 1, generator=generator, dtype=e.dtype)
    around: Tensor = size * (s * unit + (1 - s.square()).sqrt() * z)
    return around
