"""Solvers of an edit, one per paper: replace, regenerate, null space, remove."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from diffusers_erase.editing.solving import remove, solve, solve_within
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.gram import lower_gram, mirrored
from diffusers_erase.linalg.inverse import EditedLayers
from diffusers_erase.linalg.subspace import row_space


ENOUGH = 0.999
"""Share of the change's energy for which no higher rank is taken."""


@dataclass(frozen=True)
class Problem:
    """An edit to be solved for, in rows of text states; all float64 on the CPU."""

    E: Tensor
    """Text states to be replaced, n x width."""
    V: Tensor
    """The state that replaces each of them, n x width."""
    K: Tensor
    """Quadratic penalty on changing each text direction, without the ridge (width x width)."""
    ridge: float
    """λ, absolute."""
    protect: Tensor | None = None
    """Directions that must not change, orthonormal columns, width x h."""
    G: Tensor | None = None
    """Σ W^T W over the text layers, width x width; only some solvers need it."""

    @classmethod
    def of(
        cls,
        E: Tensor,
        V: Tensor,
        kept: Tensor,
        *,
        keep_weight: float,
        ridge: float,
        protect: Tensor | None = None,
        G: Tensor | None = None,
        count: float | None = None,
    ) -> "Problem":
        """The problem in means, so that the number of prompts does not matter.

        argmin_P  mean |(I + P) E - V|^2 + κ mean |P R|^2 + λ |P|^2

        `kept` are second moments of R, the states to be kept; `ridge` is λ relative to the mean
        square of what is solved for; `count` is the number of states that the rows stand for, if
        it is not their own.
        """
        E, V = (x.detach().double().cpu().reshape(-1, x.shape[-1]) for x in (E, V))
        K = keep_weight * (count or len(E)) * kept.double().cpu()
        mean = float(E.square().sum() / len(K) + K.diagonal().mean())
        return cls(E, V, K, ridge * mean, protect, G)

    @property
    def penalty(self) -> Tensor:
        """K + λ I."""
        penalty = self.K.clone()
        penalty.diagonal().add_(self.ridge)
        return penalty

    @property
    def second_moment(self) -> Tensor:
        """Normal matrix E^T E + K + λ I."""
        return torch.addmm(self.penalty, self.E.T, self.E)

    @property
    def reading(self) -> Tensor:
        """G, or an error if it was not taken."""
        if self.G is None:
            raise ErasureError("This edit needs the weights that read the text, for Σ W^T W.")
        return self.G


class Solver(Protocol):
    """A way to solve a problem."""

    def __call__(self, problem: Problem) -> TextMap:
        """The text map."""
        ...


@dataclass(frozen=True)
class Replace:
    """argmin_P  |(I + P) E - V|^2 + tr(P (K + λ I) P^T),  P Q = 0

    UCE (arXiv 2308.14761).
    """

    def __call__(self, problem: Problem) -> TextMap:
        """Solved once."""
        return solve(problem.E, problem.V, problem.penalty, protect=problem.protect)


@dataclass(frozen=True)
class Regenerate:
    """T <- T (I + P(E_k)),  E_k = E K_k^T,  K_k = (λ_r I + T^T G T)^-1 T^T G

    RECE (arXiv 2407.12383): after each edit, find the text embeddings that make the edited layers
    output what they did before, and edit those too. No pictures are drawn: a round that changes the
    kept states by more than `budget`, or makes the concept no harder to regain, is not taken.
    """

    rounds: int = 3
    bound: float = 0.1
    """λ_r, relative to the mean of the diagonal of G; a larger one allows smaller states."""
    gain: float = 0.01
    """Least rise of the relative error for which a round is taken."""
    budget: float = 0.3
    """Largest relative change of the kept states, sqrt(tr(P K P^T) / tr(K)), after all rounds."""

    def __call__(self, problem: Problem) -> TextMap:
        """The edits of all rounds that were taken, as one map."""
        G, E = problem.reading, problem.E
        T = Replace()(problem)
        again, left = self._regained(T, G, E)
        for _ in range(self.rounds):
            step = solve(again, problem.V, problem.penalty, protect=problem.protect)
            further = T.after(step)
            again, harder = self._regained(further, G, E)
            if harder < left + self.gain or drift(further, problem.K) > self.budget:
                break
            T, left = TextMap.of(further.change), harder
        return T

    def _regained(self, T: TextMap, G: Tensor, E: Tensor) -> tuple[Tensor, float]:
        """Text embeddings that regain E, and their relative error."""
        reading = EditedLayers.mapped(G, T.U, T.V)
        again = reading.regained(E, self.bound)
        return again, reading.relative_error(E, again)


@dataclass(frozen=True)
class NullSpace:
    """`Replace` with K's large directions held exactly.

    SPEED (arXiv 2503.07392), with one projector for all layers. Directions of the kept states with
    an eigenvalue above `threshold` (of the largest) are held, the rest is free: nothing that was
    listed moves, as long as the width has room.
    """

    threshold: float = 1e-4

    def __call__(self, problem: Problem) -> TextMap:
        """Solved within the null space, with the ridge alone.

        Raises:
            ErasureError: the kept states span the whole width.
        """
        sizes, vectors = torch.linalg.eigh(problem.K)
        kept = vectors[:, sizes > self.threshold * sizes.max()].T
        Q = kept if problem.protect is None else torch.cat((kept, problem.protect.T))
        return Replace()(replace(problem, protect=row_space(Q), K=torch.zeros_like(problem.K)))


@dataclass(frozen=True)
class Remove:
    """LEACE (arXiv 2306.03819): no linear classifier of states tells E from V, at the least cost.

    V replaces nothing: only what distinguishes E from it is removed. Nothing follows for pictures.
    """

    def __call__(self, problem: Problem) -> TextMap:
        """Rank one."""
        X = torch.cat((problem.E, problem.V))
        covariance = (X - X.mean(0)).T @ (X - X.mean(0)) / len(X)
        between = (problem.E.mean(0) - problem.V.mean(0))[None] / 4
        K = covariance + problem.penalty / len(problem.E)
        return remove(between, K, protect=problem.protect)


def solved_within(solver: Solver, problem: Problem, rank: int) -> tuple[TextMap, float, int]:
    """The solution's best map of a rank, the share of its energy that this keeps, and its own rank.

    A smaller rank is taken where it keeps the share `ENOUGH`.
    Energy is that of the change with the problem's `second_moment`.
    """
    if isinstance(solver, Replace):
        E, V, penalty = problem.E, problem.V, problem.penalty
        best = solve_within(E, V, penalty, rank, protect=problem.protect, enough=ENOUGH)
        return *best, min(E.shape)
    solved = solver(problem)
    best = solved.truncated(rank, second_moment=problem.second_moment, enough=ENOUGH)
    return *best, solved.rank


def drift(T: TextMap, K: Tensor) -> float:
    """sqrt(tr(P K P^T) / tr(K)): the relative change of states with these second moments."""
    P = T.change
    return float((torch.trace(P @ K @ P.T) / torch.trace(K)).sqrt())


def weights_gram(weights: Mapping[str, Tensor]) -> Tensor:
    """G = Σ_l W_l^T W_l, width x width, float64; float32 sums but for float64 weights."""
    total = None
    for weight in weights.values():
        W = weight.detach().cpu()
        total = lower_gram(W if W.dtype == torch.float64 else W.float(), total)
    assert total is not None
    return mirrored(total)
