"""A linear map of the text, and the LoRA it amounts to in every layer that reads the text."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import Factors


@dataclass(frozen=True)
class TextMap:
    """T = I + U V^T on text states (columns): a layer W reads as W T from now on.

    The same erasure for every model with this text encoder, in width x rank numbers twice: its LoRA
    for a layer is A = V^T, B = W U. Applied to the prompt's states instead of the weights it does
    the same, as long as all states go through it, the negative prompt's too.
    """

    U: Tensor
    """Width x rank, float64."""
    V: Tensor
    """Width x rank, float64."""

    def __post_init__(self) -> None:
        if self.U.ndim != 2 or self.U.shape != self.V.shape:
            raise ErasureError(
                "The factors of a text map do not fit each other: "
                f"{tuple(self.U.shape)} and {tuple(self.V.shape)}."
            )
        if not (torch.isfinite(self.U).all() and torch.isfinite(self.V).all()):
            raise ErasureError("A text map holds values that are not finite numbers.")
        for name in ("U", "V"):  # products round by how numbers lie in memory: as in a file
            object.__setattr__(self, name, getattr(self, name).contiguous())

    @classmethod
    def of(cls, P: Tensor) -> "TextMap":
        """The map I + P, with as few columns as P has rank, largest first."""
        left, sizes, right = torch.linalg.svd(P.detach().double().cpu())
        rank = int((sizes > 1e-12 * sizes.max()).sum())
        root = sizes[:rank].sqrt()
        return cls(left[:, :rank] * root, right[:rank].T * root)

    @property
    def width(self) -> int:
        """Of a text state."""
        return len(self.U)

    @property
    def rank(self) -> int:
        """Of what it adds to the identity, at most."""
        return self.U.shape[1]

    @property
    def change(self) -> Tensor:
        """P = U V^T, what it adds to the identity, width x width."""
        return self.U @ self.V.T

    def __call__(self, states: Tensor) -> Tensor:
        """The states as the layers read them from now on; ... x width, in their own dtype."""
        U, V = (x.to(states.device) for x in (self.U, self.V))
        read = states.double()
        return (read + (read @ V) @ U.T).to(states.dtype)

    def after(self, first: "TextMap") -> "TextMap":
        """E -> self(first(e)), exactly, with the sum of both ranks.

        A model whose weights were edited by `earlier` and then by `later` reads
        `earlier.after(later)`: W T1 T2.
        """
        U = torch.cat((first.U + self.U @ (self.V.T @ first.U), self.U), 1)
        return TextMap(U, torch.cat((first.V, self.V), 1))

    def truncated(
        self, rank: int, second_moment: Tensor | None = None, read: Tensor | None = None
    ) -> tuple["TextMap", float]:
        """The best map of a rank, and the share of the change's energy that it keeps.

        argmin_{rank P' <= rank}  tr(G (P - P') S (P - P')^T)    (Eckart-Young with weights)

        Args:
            rank: largest rank.
            second_moment: S, width x width, positive definite, of the states that occur.
            read: G, width x width, positive definite: sum of W^T W over the layers.
        """
        root = None if read is None else torch.linalg.cholesky(read.double().cpu()).T
        U = self.U if root is None else root @ self.U
        moved = self.V if second_moment is None else second_moment.double().cpu() @ self.V
        reflections, scales = torch.geqrf(U)  # U = Q R, and Q is never written out
        R = reflections.triu()[: self.rank]
        across = R @ (self.V.T @ moved) @ R.T  # squares of the singular values of G^1/2 P S^1/2
        energy, left = torch.linalg.eigh(across)
        energy, left = energy.flip(0).clamp(min=0), left.flip(1)
        largest = U.new_zeros(self.width, min(rank, len(left)))
        largest[: len(left)] = left[:, :rank]
        X = torch.ormqr(reflections, scales, largest)
        # P' = G^-1/2 X X^T G^1/2 P: what P answers with nothing, P' does too
        best = TextMap(
            X if root is None else torch.linalg.solve_triangular(root, X, upper=True),
            self.V @ (U.T @ X),
        )
        return best, float(energy[:rank].sum() / energy.sum()) if energy.any() else 1.0

    def factors(self, weights: Mapping[str, Tensor]) -> dict[str, Factors]:
        """The LoRA of every layer: W T = W + B A with A = V^T and B = W U, float32 on the CPU.

        Args:
            weights: path -> weight, out x width, of layers that read the text.

        Raises:
            ErasureError: a layer reads states of another width.
        """
        for path, W in weights.items():
            if W.shape[1] != self.width:
                raise ErasureError(
                    f"The text map is for states of width {self.width}; '{path}' reads "
                    f"{W.shape[1]}: it was made for another text encoder."
                )
        A = self.V.T.float()
        return {
            path: (A.clone(), (W.detach().double().cpu() @ self.U).float())
            for path, W in weights.items()
        }
