"""Inverses on the complement of protected directions, and the inversion of edited layers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.subspace import project_out


WORST_CONDITION = 1e13
"""Largest condition number of a system; float64 has sixteen digits."""


@dataclass(frozen=True)
class Inverse:
    """N = F (F^T M F)^-1 F^T with F an orthonormal basis of the complement of Q; factorised once.

    N = Z Z^T,  Z^T = (I - B B^T) L^-1,  L L^T = M + c Q Q^T,  B an orthonormal basis of L^-1 Q:
    protected directions cost as many rows as there are of them, and no width x width product.
    """

    L: Tensor
    """Lower triangular, width x width, float64."""
    B: Tensor
    """Orthonormal columns, width x h."""
    Q: Tensor
    """Protected directions, orthonormal columns, width x h."""

    @classmethod
    def of(cls, M: Tensor, protect: Tensor | None = None) -> "Inverse":
        """Factorise M (width x width, positive definite, float64) by Cholesky.

        `protect` is Q, orthonormal columns, width x h, with N Q = 0 exactly.

        Raises:
            ErasureError: M is too ill-conditioned outside Q.
        """
        Q = M.new_zeros(len(M), 0) if protect is None else protect.to(M)
        # N is zero on protected directions, whatever M is there
        L, failed = torch.linalg.cholesky_ex(torch.addmm(M, Q * M.diagonal().mean(), Q.T))
        pivots = L.diagonal()
        condition = float("inf") if failed else float((pivots.max() / pivots.min()).square())
        if not condition < WORST_CONDITION:
            raise ErasureError(
                f"The system is too ill-conditioned to be solved (condition number at least "
                f"{condition:.0e}): raise the ridge, or leave out prompts that repeat one another."
            )
        return cls(L, torch.linalg.qr(torch.linalg.solve_triangular(L, Q, upper=False))[0], Q)

    def half(self, E: Tensor) -> Tensor:
        """E Z, n x width: E N E^T is its Gram."""
        rows = torch.linalg.solve_triangular(self.L.T, E, upper=True, left=False)
        return project_out(rows, self.B)

    def __call__(self, E: Tensor) -> Tensor:
        """E N, n x width."""
        return self.whole(self.half(E))

    def whole(self, half: Tensor) -> Tensor:
        """E Z Z^T = E N."""
        return project_out(
            torch.linalg.solve_triangular(self.L, half, upper=False, left=False), self.Q
        )


@dataclass(frozen=True)
class EditedLayers:
    """Gram matrices of layers W before an edit and W' after it, summed over the layers.

    Each width x width, float64.
    """

    before: Tensor
    """G = Σ W^T W."""
    after: Tensor
    """Σ W'^T W'."""
    across: Tensor
    """Σ W'^T W."""

    @classmethod
    def mapped(cls, G: Tensor, U: Tensor, V: Tensor) -> "EditedLayers":
        """Layers with Gram matrix G before the edit, and W' = W (I + U V^T) after it."""
        read = U.T @ G
        return cls.changed(G, V.T, read, read @ U @ V.T)

    @classmethod
    def changed(cls, G: Tensor, A: Tensor, read: Tensor, added: Tensor) -> "EditedLayers":
        """Layers with Gram matrix G before the edit, and W' = W + B A after it.

        Σ W'^T W = G + A^T B^T W,   Σ W'^T W' = Σ W'^T W + (W + B A)^T B A

        Each of A, `read` (B^T W) and `added` (B^T B A) has the rows of all layers, n x width: both
        matrices differ from G by n terms of rank one.
        """
        across = torch.addmm(G, A.T, read)
        return cls(G, torch.addmm(across, (read + added).T, A), across)

    @classmethod
    def with_factors(
        cls, G: Tensor, changes: Iterable[tuple[Tensor, Tensor, Tensor]]
    ) -> "EditedLayers":
        """Layers with Gram matrix G before the edit, some of which, W, become W + B A.

        `changes` are W, A and B of each: rows x width, rank x width and rows x rank.
        """
        parts = [G.new_zeros(3, 0, G.shape[1])]
        parts += [torch.stack((A, B.T @ W, B.T @ B @ A)).to(G) for W, A, B in changes]
        return cls.changed(G, *torch.cat(parts, 1))

    def regained(self, E: Tensor, bound: float) -> Tensor:
        """Text embeddings that make the edited layers output what they did before (RECE).

        argmin_E'  Σ |W' E' - W E|^2 + λ |E'|^2  (arXiv 2407.12383), n x width.

        E are the states before, n x width. `bound` is λ relative to the mean of the diagonal of G;
        a larger one gives smaller states.
        """
        ridge = bound * self.before.diagonal().mean()
        M = self.after.clone()
        M.diagonal().add_(ridge)
        states: Tensor = torch.linalg.solve(M, self.across @ E.T).T
        return states

    def relative_error(self, E: Tensor, other: Tensor) -> float:
        """Σ |W' E' - W E|^2 / Σ |W E|^2 for states E before and E' after."""
        gap = quadratic(other, self.after) - 2 * (other @ self.across * E).sum()
        return float((gap + quadratic(E, self.before)) / quadratic(E, self.before))


def quadratic(E: Tensor, G: Tensor) -> Tensor:
    """tr(E G E^T)."""
    return (E @ G * E).sum()
