"""The weights that an eraser may consist of: one file of code and one row of `PAYLOADS` each."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.config import EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.products import Product
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import quadratic
from diffusers_erase.models.architectures import Factors, reads_text


class Payload(Protocol):
    """Weights of one kind, in one safetensors file; a linear change of a denoiser's layers.

    Constructors check that the numbers and their products are finite.
    """

    name: ClassVar[str]
    """Its name in `config.payloads`."""
    file: ClassVar[str]
    """Path of its file in the repository."""

    @property
    def rank(self) -> int:
        """The largest rank of a layer's change."""

    def __str__(self) -> str:
        """Its kind and size, in a few words."""

    def tensors(self) -> list[Tensor]:
        """All its numbers, in an order that depends on nothing but the weights."""

    @classmethod
    def is_in(cls, names: Collection[str]) -> bool:
        """True if a file with tensors of these names holds this kind of weights."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The weights in a file.

        Raises:
            ErasureError: it is damaged, or exceeds the limits.
        """

    def files(self, config: EraserConfig, repo_id: str) -> dict[str, bytes]:
        """Path in the repository -> content of its file."""

    def usage(self, repo_id: str) -> list[str]:
        """Lines of the card, in Markdown: uses of its file."""

    def check(self, denoiser: nn.Module) -> None:
        """Refuse a denoiser that it does not fit, or whose weights it would make infinite.

        Raises:
            ErasureError: names the layer.
        """

    def paths(self, denoiser: nn.Module) -> tuple[str, ...]:
        """The layers of a denoiser that it changes."""

    def pair(self, path: str, product: Product) -> Factors:
        """A (rank x in) and B (out x rank) of one layer; `product` multiplies with its weight."""

    @classmethod
    def summed(cls, payloads: Sequence[Self]) -> Self:
        """Σ_i D_i, with the sum of the ranks."""

    def scaled(self, strength: float) -> Self:
        """D -> s D."""

    def through(self, N: Tensor) -> Self:
        """D -> D N in the layers that read the text, N width x width."""

    def compact(self, rank: int | None) -> tuple[Self, float]:
        """The same change with as few columns as it has, or its best form of a rank.

        argmin_{rank D' <= r} |D - D'|, and the share of the change's energy that is kept.
        """


PAYLOADS: dict[str, type[Payload]] = {kind.name: kind for kind in (Lora, TextMap)}
"""Name -> kind of weights. Of the payloads of an eraser the last one acts; those before it are
copies of its change for one model, which other programs read."""

COPY = 0.02
"""Largest relative difference of a copy; bfloat16 rounds by up to 0.004."""


def payload_named(name: str) -> type[Payload]:
    """The kind of weights of that name; raises for one that this version does not know."""
    if name not in PAYLOADS:
        raise ErasureError(
            f"This eraser holds a payload {name!r} that this version of diffusers_erase does not "
            f"know ({', '.join(PAYLOADS)}); without it the eraser would not erase what it says. "
            "Update diffusers_erase."
        )
    return PAYLOADS[name]


def check_copies(payloads: Sequence[Payload]) -> None:
    """Raise if the LoRA beside a text map is no copy of the map's change W P for some weights W.

    Whatever W is, W P is zero where P = U V^T is: every A has its rows in the span of V.

    Raises:
        ErasureError: names a layer where it is not so.
    """
    lora = next((x.factors for x in payloads if isinstance(x, Lora)), {})
    text_map = next((x for x in payloads if isinstance(x, TextMap)), None)
    if text_map is None:
        return
    Q = torch.linalg.qr(text_map.V).Q
    for path, (A, B) in lora.items():
        A, gram = A.double(), B.double().T @ B.double()
        fits = reads_text(path) and A.shape[1] == text_map.width
        outside = A - (A @ Q) @ Q.T if fits else A
        if quadratic(outside.T, gram) > COPY**2 * quadratic(A.T, gram):
            raise ErasureError(
                f"The eraser's LoRA and its text map are two different changes: that of '{path}' "
                "is not one of the text states that the map changes. Ask its author for an eraser "
                "whose files agree."
            )
