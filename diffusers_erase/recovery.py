"""States by which an edited model can still be made to read what it was to forget."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """How layers W read text before an edit and W' after it, summed over the layers.

    All width x width, float64.
    """

    before: Tensor
    """G = Σ W^T W."""
    after: Tensor
    """Σ W'^T W'."""
    across: Tensor
    """Σ W'^T W."""

    def regained(self, E: Tensor, bound: float) -> Tensor:
        """argmin_E'  Σ |W' E' - W E|^2 + λ |E'|^2  (RECE, arXiv 2407.12383), n x width.

        Args:
            E: states before, n x width.
            bound: λ, relative to the mean square that is read: how far from ordinary states is
                still looked.
        """
        ridge = bound * self.before.diagonal().mean()
        M = self.after + ridge * torch.eye(len(self.after), dtype=self.after.dtype)
        answer: Tensor = torch.linalg.solve(M, self.across @ E.T).T
        return answer

    def apart(self, E: Tensor, other: Tensor) -> float:
        """Σ |W' E' - W E|^2 / Σ |W E|^2 for states E before and E' after."""
        gap = quadratic(other, self.after) - 2 * (other @ self.across * E).sum()
        return float((gap + quadratic(E, self.before)) / quadratic(E, self.before))


def quadratic(E: Tensor, G: Tensor) -> Tensor:
    """tr(E G E^T)."""
    return (E @ G * E).sum()
