"""The payload `text_map`: a linear map of the text, and its LoRA in layers that read the text."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.config import EraserConfig
from diffusers_erase.eraser.products import LARGEST, Product, product_with, require_finite
from diffusers_erase.eraser.safetensors_io import opened, serialized, shapes_in
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.lowrank import compressed
from diffusers_erase.models.architectures import Factors, text_layers


@dataclass(frozen=True)
class TextMap:
    """T = I + U V^T on text states (columns): every layer W that reads the text becomes W T.

    It is the same erasure for every model with this text encoder; the LoRA of a layer is A = V^T,
    B = W U. Applying it to all text states, those of the negative prompt too, is equivalent.
    """

    name: ClassVar[str] = "text_map"
    file: ClassVar[str] = "text_map.safetensors"

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
        require_finite(self.V.T, self.U, "The text map")
        for name in ("U", "V"):  # products round by how numbers lie in memory: as in a file
            object.__setattr__(self, name, getattr(self, name).contiguous())

    def __str__(self) -> str:
        return f"text map of rank {self.rank} for text states of width {self.width}"

    @classmethod
    def of(cls, P: Tensor) -> "TextMap":
        """The map I + P, with as few columns as P has rank, largest first."""
        left, sizes, right = torch.linalg.svd(P.detach().double().cpu())
        rank = int((sizes > 1e-12 * sizes.max()).sum())
        root = sizes[:rank].sqrt()
        return cls(left[:, :rank] * root, right[:rank].T * root)

    @property
    def width(self) -> int:
        """The width of a text state."""
        return len(self.U)

    @property
    def rank(self) -> int:
        """The largest rank of what it adds to the identity."""
        return self.U.shape[1]

    @property
    def change(self) -> Tensor:
        """P = U V^T, what it adds to the identity, width x width."""
        return self.U @ self.V.T

    def __call__(self, states: Tensor) -> Tensor:
        """T applied to text states, ... x width, in their own dtype."""
        U, V = (x.to(states.device) for x in (self.U, self.V))
        read = states.double()
        return (read + (read @ V) @ U.T).to(states.dtype)

    def after(self, first: "TextMap") -> "TextMap":
        """The composition e -> self(first(e)), exactly, with the sum of both ranks.

        Weights edited by T1 and then by T2 are W T1 T2, that is `T1.after(T2)`.
        """
        U = torch.cat((first.U + self.U @ (self.V.T @ first.U), self.U), 1)
        return TextMap(U, torch.cat((first.V, self.V), 1))

    def truncated(
        self,
        rank: int,
        second_moment: Tensor | None = None,
        read: Tensor | None = None,
        enough: float = 1.0,
    ) -> tuple["TextMap", float]:
        """The best map of a rank, and the share of the change's energy that it keeps.

        argmin_{rank P' <= rank}  tr(G (P - P') S (P - P')^T)    (Eckart-Young with weights)

        `second_moment` is S of the states that occur and `read` is G, the sum of W^T W over the
        layers; each is width x width and positive definite, the identity if omitted. The rank is
        the smallest that keeps the share `enough`, where that is smaller.
        """
        root = None if read is None else torch.linalg.cholesky(read.double().cpu()).T
        U = self.U if root is None else root @ self.U
        moved = self.V if second_moment is None else second_moment.double().cpu() @ self.V
        reflections, scales = torch.geqrf(U)  # U = Q R, and Q is never written out
        R = reflections.triu()[: self.rank]
        across = R @ (self.V.T @ moved) @ R.T  # squares of the singular values of G^1/2 P S^1/2
        energy, left = torch.linalg.eigh(across)
        energy, left = energy.flip(0).clamp(min=0), left.flip(1)
        if enough < 1:
            rank = min(rank, 1 + int((energy.cumsum(0) < enough * energy.sum()).sum()))
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
        """The LoRA of every layer: W T = W + B A with A = V^T and B = W U, in float32 on the CPU.

        `weights` is path -> weight, out x width, of layers that read the text.

        Raises:
            ErasureError: a layer reads states of another width.
        """
        for path, W in weights.items():
            if W.shape[1] != self.width:
                raise ErasureError(
                    f"The text map is for states of width {self.width}; '{path}' reads "
                    f"{W.shape[1]}: it was made for another text encoder."
                )
        A, U = self.V.T.float(), self.U.float()
        return {path: (A.clone(), W.detach().cpu().float() @ U) for path, W in weights.items()}

    def gram(self, weights: Iterable[Tensor]) -> Tensor:
        """Σ U^T W^T W U, rank x rank, float64: |change of W e|^2 = (V^T e)^T gram (V^T e)."""
        found = torch.zeros(self.rank, self.rank, dtype=torch.float64)
        for W in weights:
            B = product_with(W)(self.U)
            found += (B.T @ B).double().cpu()
        return found

    def tensors(self) -> list[Tensor]:
        """U and V."""
        return [self.U, self.V]

    @classmethod
    def is_in(cls, names: Collection[str]) -> bool:
        """True if a file with tensors of these names holds a text map."""
        return {*names} == {"U", "V"}

    @classmethod
    def read(cls, path: Path) -> "TextMap":
        """Read the text map in a file; rank, width and type are checked before the numbers."""
        shapes, dtypes = shapes_in(path)
        if not cls.is_in(shapes) or not dtypes <= {"F64", "F32", "F16", "BF16"}:
            raise ErasureError(
                f"'{path}' holds {', '.join(sorted(shapes))[:200]} of type "
                f"{', '.join(sorted(dtypes))}; a text map is U and V, of floating-point numbers."
            )
        matrices = len(shapes["U"]) == 2 and shapes["U"] == shapes["V"]
        if not matrices or not 1 <= shapes["U"][1] <= shapes["U"][0]:
            raise ErasureError(
                f"'{path}' holds U of shape {shapes['U']} and V of shape {shapes['V']}; a text map "
                "is two matrices, width x rank, of a rank from 1 to the width."
            )
        found = opened(path).tensors
        return cls(found["U"].double(), found["V"].double())

    def files(self, config: EraserConfig, repo_id: str) -> dict[str, bytes]:
        """One file, float32, of a rank no larger than the width."""
        T = self if self.rank <= self.width else TextMap.of(self.change)
        header = {"format": "pt", "erasure": json.dumps(config.to_dict())}
        return {self.file: serialized({"U": T.U.float(), "V": T.V.float()}, header)}

    def usage(self, repo_id: str) -> list[str]:
        """The line of the card: with which models the map works."""
        return [f"`{self.file}` is a map of the text, for every model with the same text encoder."]

    def check(self, denoiser: nn.Module) -> None:
        """Refuse a denoiser that reads text states of another width, or would become infinite."""
        layers = text_layers(denoiser)
        widths = sorted({layer.in_features for layer in layers.values()})
        if widths != [self.width]:
            raise ErasureError(
                f"The text map is for states of width {self.width}, and the layers read "
                f"{' and '.join(map(str, widths))}: it was made for another text encoder."
            )
        for path, layer in layers.items():
            W = layer.weight
            known = W.is_floating_point() and not W.is_meta
            if known and not self._surely_finite(W):
                A, B = self.pair(path, product_with(W))
                require_finite(A, B, f"The text map's change of '{path}'")

    def _surely_finite(self, W: Tensor) -> bool:
        """A bound of `require_finite` without a product: |W_i U| <= width^1/2 max |W| |U|."""
        low, high = W.detach().aminmax()
        row = math.sqrt(self.width) * max(-float(low), float(high)) * float(self.U.norm())
        column = float(self.V.norm())
        return max(row, column, row * column) <= LARGEST

    def paths(self, denoiser: nn.Module) -> tuple[str, ...]:
        """All layers that read the text."""
        return tuple(text_layers(denoiser))

    def pair(self, path: str, product: Product) -> Factors:
        """A = V^T and B = W U of one layer."""
        B = product(self.U)
        return self.V.T.to(B), B

    @classmethod
    def summed(cls, maps: Sequence["TextMap"]) -> "TextMap":
        """I + Σ_i U_i V_i^T, by concatenation; refuses different widths."""
        widths = sorted({T.width for T in maps})
        if len(widths) > 1:
            raise ErasureError(
                f"The erasers are for texts of different widths: {' and '.join(map(str, widths))}."
            )
        return cls(torch.cat([T.U for T in maps], 1), torch.cat([T.V for T in maps], 1))

    def scaled(self, strength: float) -> "TextMap":
        """U V^T -> s U V^T."""
        return TextMap(strength * self.U, self.V)

    def through(self, N: Tensor) -> "TextMap":
        """U V^T -> U V^T N."""
        return TextMap(self.U, N.T @ self.V)

    def compact(self, rank: int | None) -> tuple["TextMap", float]:
        """The best change of a rank, and the share of its energy that it keeps."""
        A, B, kept = compressed(self.V.T, self.U, rank)
        return TextMap(B.double(), A.double().T), kept
