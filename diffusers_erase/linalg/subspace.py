"""The subspace of protected text states, and its orthogonal complement."""

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


def row_space(states: Tensor) -> Tensor:
    """Orthonormal basis Q of the span of states (... x width), width x numerical rank, float64.

    Raises:
        ErasureError: the states span the whole width.
    """
    rows = states.detach().double().cpu().reshape(-1, states.shape[-1])
    _, sizes, vectors = torch.linalg.svd(rows, full_matrices=False)
    kept: Tensor = vectors[sizes > 1e-6 * sizes.max()].T
    if kept.shape[1] >= rows.shape[1]:
        raise ErasureError(
            f"The prompts to protect span all {rows.shape[1]} dimensions of the text; "
            "name fewer of them."
        )
    return kept


def project_out(x: Tensor, Q: Tensor) -> Tensor:
    """X (I - Q Q^T): rows without their part in the span of Q, applied twice against rounding."""
    once = x - (x @ Q) @ Q.T
    twice: Tensor = once - (once @ Q) @ Q.T
    return twice
