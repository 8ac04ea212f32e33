"""What each paper makes of the same rows: replace, regenerate, null space, remove."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from diffusers_erase.editing.solving import remove, solve, solve_within
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import EditedReading
from diffusers_erase.linalg.subspace import row_space


@dataclass(frozen=True)
class Problem:
    """An edit to be made, in rows of text states; everything in float64 on the CPU."""

    E: Tensor
    """What is to be read differently, n x width."""
    V: Tensor
    """What each of them is to be read as, n x width."""
    K: Tensor
    """How dear every direction is, width x width; without the ridge."""
    ridge: float
    """λ, absolute."""
    hold: Tensor | None = None
    """Orthonormal columns that must not change, width x h."""
    G: Tensor | None = None
    """Σ W^T W over the layers, width x width: how the model reads; only some solvers ask for it."""

    @classmethod
    def of(
        cls,
        E: Tensor,
        V: Tensor,
        spared: Tensor,
        *,
        spare: float,
        ridge: float,
        hold: Tensor | None = None,
        G: Tensor | None = None,
    ) -> "Problem":
        """In means, so that the number of prompts is no weight.

        argmin_P  mean |(I + P) E - V|^2 + κ mean |P R|^2 + λ |P|^2

        Args:
            E: ... x width.
            V: of the same shape.
            spared: second moments of R, width x width.
            spare: κ, how much R weighs against E.
            ridge: λ, relative to the mean square of what is solved for.
            hold: as in `solve`.
            G: as above.
        """
        E, V = (x.detach().double().cpu().reshape(-1, x.shape[-1]) for x in (E, V))
        K = spare * len(E) * spared.double().cpu()
        mean = float(E.square().sum() / len(K) + K.diagonal().mean())
        return cls(E, V, K, ridge * mean, hold, G)

    @property
    def penalty(self) -> Tensor:
        """K + λ I."""
        penalty = self.K.clone()
        penalty.diagonal().add_(self.ridge)
        return penalty

    @property
    def second_moment(self) -> Tensor:
        """E^T E + K + λ I: second moments of the states that matter."""
        return torch.addmm(self.penalty, self.E.T, self.E)

    @property
    def reading(self) -> Tensor:
        """G, or an error if it was not taken."""
        if self.G is None:
            raise ErasureError("This edit needs the weights that read the text, for Σ W^T W.")
        return self.G


class Solver(Protocol):
    """A way to solve it."""

    def __call__(self, problem: Problem) -> TextMap:
        """The text as it is to be read."""
        ...


@dataclass(frozen=True)
class Replace:
    """argmin_P  |(I + P) E - V|^2 + tr(P (K + λ I) P^T),  P Q = 0

    UCE (arXiv 2308.14761).
    """

    def __call__(self, problem: Problem) -> TextMap:
        """Solved once."""
        return solve(problem.E, problem.V, problem.penalty, hold=problem.hold)


@dataclass(frozen=True)
class Regenerate:
    """T <- T (I + P(E_k)),  E_k = E K_k^T,  K_k = (λ_r I + T^T G T)^-1 T^T G

    RECE (arXiv 2407.12383). After the first edit, find the states by which the concept can still be
    said, and edit those too. Without a picture: a round that moves what is dear by more than
    `budget`, or that makes the concept no harder to regain, is not taken.
    """

    rounds: int = 3
    bound: float = 0.1
    """λ_r, relative to the mean of G: how far from ordinary states is still looked."""
    gain: float = 0.01
    """Least rise of what stays out of reach for which a round is worth it."""
    budget: float = 0.3
    """Largest relative change of what is dear, sqrt(tr(P K P^T) / tr(K)), after all rounds."""

    def __call__(self, problem: Problem) -> TextMap:
        """The edits of all rounds that were taken, as one map."""
        G, E = problem.reading, problem.E
        T = Replace()(problem)
        again, left = self._regained(T, G, E)
        for _ in range(self.rounds):
            step = solve(again, problem.V, problem.penalty, hold=problem.hold)
            further = T.after(step)
            again, harder = self._regained(further, G, E)
            if harder < left + self.gain or drift(further, problem.K) > self.budget:
                break
            T, left = TextMap.of(further.change), harder
        return T

    def _regained(self, T: TextMap, G: Tensor, E: Tensor) -> tuple[Tensor, float]:
        """States that say E again, and how far from it they stay."""
        reading = read_through(T, G)
        again = reading.regained(E, self.bound)
        return again, reading.apart(E, again)


@dataclass(frozen=True)
class NullSpace:
    """`Replace` with K's large directions held exactly.

    SPEED (arXiv 2503.07392), with one projector for all layers. Directions of what is spared with
    an eigenvalue above `threshold` (of the largest) are held, the rest is free: nothing that was
    listed moves, as long as the width has room.
    """

    threshold: float = 1e-4

    def __call__(self, problem: Problem) -> TextMap:
        """Solved within the null space, with the ridge alone.

        Raises:
            ErasureError: the spared states leave no room.
        """
        sizes, vectors = torch.linalg.eigh(problem.K)
        spared = vectors[:, sizes > self.threshold * sizes.max()].T
        held = spared if problem.hold is None else torch.cat((spared, problem.hold.T))
        return Replace()(replace(problem, hold=row_space(held), K=torch.zeros_like(problem.K)))


@dataclass(frozen=True)
class Remove:
    """No linear reader tells E from V afterwards, at the least cost: LEACE (arXiv 2306.03819).

    Without targets: what distinguishes them is lost. It holds for readers of the states; what a
    UNet makes of the rest of a prompt is not promised.
    """

    def __call__(self, problem: Problem) -> TextMap:
        """Rank one."""
        X = torch.cat((problem.E, problem.V))
        covariance = (X - X.mean(0)).T @ (X - X.mean(0)) / len(X)
        between = (problem.E.mean(0) - problem.V.mean(0))[None] / 4
        K = covariance + problem.penalty / len(problem.E)
        return remove(between, K, hold=problem.hold)


def solved_within(solver: Solver, problem: Problem, rank: int) -> tuple[TextMap, float, int]:
    """The solution's best map of a rank, the share of its energy that this keeps, and its own rank.

    Energy is that of the change on the states that matter (`Problem.met`).
    """
    if isinstance(solver, Replace):
        E, V, penalty = problem.E, problem.V, problem.penalty
        return *solve_within(E, V, penalty, rank, hold=problem.hold), min(E.shape)
    solved = solver(problem)
    return *solved.truncated(rank, second_moment=problem.second_moment), solved.rank


def read_through(T: TextMap, G: Tensor) -> EditedReading:
    """Layers with Gram G before the edit, and W T after it."""
    M = torch.eye(T.width, dtype=T.U.dtype) + T.change
    return EditedReading(G, M.T @ G @ M, M.T @ G)


def drift(T: TextMap, K: Tensor) -> float:
    """sqrt(tr(P K P^T) / tr(K)): the relative change of states with these second moments."""
    P = T.change
    return float((torch.trace(P @ K @ P.T) / torch.trace(K)).sqrt())


def reading_gram(weights: Mapping[str, Tensor]) -> Tensor:
    """G = Σ_l W_l^T W_l, width x width, float64."""
    return sum(((W := w.detach().cpu().double()).T @ W for w in weights.values()), torch.zeros(()))
