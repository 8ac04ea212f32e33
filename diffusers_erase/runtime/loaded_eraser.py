"""A loaded eraser, and what the backends that make it act have in common."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.payloads import Payload
from diffusers_erase.eraser.products import Product
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.models.architectures import Factors


Mode = Literal["bake", "hook", "adapter"]
"""In the weights; added to the output of the layers while they run; an ordinary adapter of peft."""

Keep = Literal["cpu"] | bool
"""Where weights without erasers are kept: beside the weights, on the CPU, or not at all."""

KeepNull = Literal["exact"]
"""The eraser is skipped for the empty prompt."""


@dataclass(frozen=True)
class LoadedEraser:
    """An eraser on a denoiser; `ErasureInfo` says what its source and commit are."""

    adapter: EraserAdapter
    strength: float
    mode: Mode = "bake"
    source: str | None = None
    commit: str | None = None
    null: Tensor | None = None
    """Text states (tokens x width) for which it is skipped, if it is a hook."""


@dataclass
class Planning:
    """Settings and original weights that the backends share while a change is planned."""

    keep: Keep
    bases: dict[str, Tensor] = field(default_factory=dict)
    """Path -> weight without erasers, of layers that erasers are in or are to be written into."""


class Change(NamedTuple):
    """A change of a denoiser that has been computed and checked, and its inverse."""

    apply: Callable[[], None]
    """Makes the change; if this raises, `undo` follows."""
    undo: Callable[[], None]
    """Restores the state before `apply`, even if that was interrupted."""


class Backend(Protocol):
    """One way in which erasers act on a denoiser; it applies the erasers of one mode."""

    def plan(
        self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser], planning: Planning
    ) -> Change:
        """Compute and check the change that makes exactly these erasers act.

        Raises:
            ErasureError: they cannot act in this way.
        """

    def acting(self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, float]:
        """Name -> share of an eraser's change that acts now; nan if that cannot be known."""

    def bases(self) -> dict[str, Tensor]:
        """Path -> weight without erasers, of layers this backend has written erasers into."""


@dataclass(frozen=True)
class Together:
    """Σ_i s_i D_i of erasers in one layer: a single product of its weight for all text maps."""

    text_map: TextMap | None
    """I + Σ_i s_i U_i V_i^T, of a rank no larger than the width."""
    loras: tuple[tuple[Lora, float], ...]
    """The other erasers and their strengths."""

    @classmethod
    def of(cls, erasers: Iterable[LoadedEraser]) -> "Together":
        """The sum of erasers, in their order, without those of strength zero."""
        acting = [(x.adapter.source, x.strength) for x in erasers if x.strength]
        maps = [source.scaled(s) for source, s in acting if isinstance(source, TextMap)]
        text_map = TextMap.summed(maps) if maps else None
        if text_map is not None and text_map.rank > text_map.width:
            text_map = TextMap(text_map.change, torch.eye(text_map.width, dtype=text_map.U.dtype))
        return cls(text_map, tuple((x, s) for x, s in acting if isinstance(x, Lora)))

    @property
    def empty(self) -> bool:
        """True if it changes nothing."""
        return self.text_map is None and not self.loras

    def pair(self, path: str, product: Product) -> Factors:
        """A (rank x in) and B (out x rank) of one layer; `product` multiplies with its weight."""
        pairs = [(lora.factors[path][0], s * lora.factors[path][1]) for lora, s in self.loras]
        if self.text_map is not None:
            A, B = self.text_map.pair(path, product)
            pairs = [(one.to(A), other.to(B)) for one, other in pairs] + [(A, B)]
        return torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs], 1)


def by_path(
    denoiser: nn.Module, erasers: Iterable[LoadedEraser]
) -> dict[str, tuple[LoadedEraser, ...]]:
    """Path of a layer -> the erasers that change it, in their order."""
    found: dict[str, list[LoadedEraser]] = {}
    text: Collection[str] = ()
    for eraser in erasers:
        source = eraser.adapter.source
        if isinstance(source, TextMap):  # the same layers for all
            text = text or source.paths(denoiser)
        for path in text if isinstance(source, TextMap) else source.paths(denoiser):
            found.setdefault(path, []).append(eraser)
    return {path: tuple(own) for path, own in found.items()}


class Sums:
    """The changes of erasers as one, computed once for all layers that the same erasers change."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Together] = {}

    def __call__(self, erasers: Sequence[LoadedEraser]) -> Together:
        """Their sum."""
        which = tuple(map(id, erasers))
        if which not in self._known:
            self._known[which] = Together.of(erasers)
        return self._known[which]


@torch.no_grad()
def factors_of(
    source: Payload | Together, path: str, layer: nn.Linear, pristine: Tensor | None
) -> Factors:
    """A and B of one layer; those of a text map are V^T and W0 U.

    `pristine` is the layer's weight W0 without erasers. Where that cannot be read (None), the
    layer's own forward pass, without the hooks of other erasers, computes W0 U.
    """

    def product(x: Tensor) -> Tensor:
        if pristine is not None:
            return (pristine.float() @ x.to(pristine.device, torch.float32)).cpu()
        rows = torch.cat([torch.zeros(1, len(x)), x.T.float()]).to(layer.weight.device)
        dtype = layer.weight.dtype if layer.weight.dtype.is_floating_point else torch.float32
        found = layer.forward(rows.to(dtype)).float().cpu()
        return (found[1:] - found[:1]).T.contiguous()  # without the bias

    A, B = source.pair(path, product)
    return A.contiguous(), B
