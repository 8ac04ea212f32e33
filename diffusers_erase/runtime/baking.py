"""W = W0 + sum_i s_i B_i A_i, from W0 that is kept: exact in any order, and undone bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.products import product_with
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import linear
from diffusers_erase.runtime.fused_projections import fused_weights
from diffusers_erase.runtime.loaded_eraser import (
    Change,
    Keep,
    LoadedEraser,
    Planning,
    Sums,
    Together,
    by_path,
)


_WRITABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Written:
    """Record of a layer that erasers are written into."""

    base: Tensor | None
    """W0, its weight before any eraser; None if it is not kept."""
    terms: Together
    """The erasers in its weight."""
    mark: Tensor
    """Sums of the bits of the weight that was written, which identify it."""
    dtype: torch.dtype
    """Type of the weight that was written."""


def rewritable(layer: nn.Linear) -> bool:
    """Whether a layer's weight is in memory, as floating-point numbers of 16 bits or more."""
    weight = layer.weight.detach()
    plain = type(layer.weight.data) is Tensor and not weight.is_meta
    return plain and weight.dtype in _WRITABLE


Weights = list[tuple[nn.Linear, Tensor]]
"""Layers, each with a weight to be written into it."""


@dataclass
class Baked:
    """Backend that writes erasers into weights; it keeps W0 of their layers."""

    layers: dict[str, Written] = field(default_factory=dict)

    @torch.no_grad()
    def plan(
        self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser], planning: Planning
    ) -> Change:
        """Compute the weights to be written. Changes by others (a fused style) stay in them.

        Raises:
            ErasureError: a weight cannot be rewritten, or would be infinite.
        """
        terms = dict.fromkeys(self.layers, ()) | by_path(denoiser, loaded.values())
        sums = Sums()
        new: Weights = []
        old: Weights = []
        layers = {}
        for path in sorted(terms):
            layer = linear(denoiser, path)
            _require_rewritable(layer, path)
            base = planning.bases[path] = self._base(layer, path)
            weight = _sum(base, path, sums(terms[path]))
            if base.isfinite().all() and not weight.isfinite().all():
                titles = ", ".join(f"'{x.adapter.config.title}'" for x in terms[path])
                raise ErasureError(
                    f"With {titles} at strength "
                    f"{', '.join(f'{x.strength:g}' for x in terms[path])}, weights of '{path}' "
                    f"would be infinite in {weight.dtype}; take a smaller strength."
                )
            new.append((layer, weight))
            old.append((layer, layer.weight.detach().clone()))
            if terms[path]:
                layers[path] = _written(path, base, weight, sums(terms[path]), planning.keep)
        return Change(partial(self._write, new, layers), partial(self._write, old, self.layers))

    @torch.no_grad()
    def _write(self, weights: Weights, layers: dict[str, Written]) -> None:
        for layer, weight in weights:
            layer.weight.copy_(weight)
        self.layers = layers

    def bases(self) -> dict[str, Tensor]:
        """Path -> W0, where it is kept."""
        known = ((path, written.base) for path, written in self.layers.items())
        return {path: base for path, base in known if base is not None}

    @torch.no_grad()
    def acting(self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, float]:
        """Name -> x_i of  argmin_x  Σ_layers |(W - W0) - Σ_i x_i s_i D_i|^2.

        W are the weights that are used now, and s_i D_i the changes that were loaded. 1 for an
        eraser of strength zero. Without W0, 1 as long as every weight is the one that was written,
        else nan; nan too if W cannot be read (offloaded) or is not finite.
        """
        names = [name for name, eraser in loaded.items() if eraser.strength]
        fused = fused_weights(denoiser)
        weights = {p: fused.get(p, linear(denoiser, p).weight.detach()) for p in self.layers}
        seen = not any(weight.is_meta for weight in weights.values())
        if not seen or any(known.base is None for known in self.layers.values()):
            kept = seen and all(_unchanged(weights[p], known) for p, known in self.layers.items())
            return dict.fromkeys(loaded, 1.0) | dict.fromkeys(names, 1.0 if kept else float("nan"))
        gram = torch.zeros(len(names), len(names), dtype=torch.float64)
        along = torch.zeros(len(names), dtype=torch.float64)
        place = {id(loaded[name]): k for k, name in enumerate(names)}
        terms = by_path(denoiser, (loaded[name] for name in names))
        for path, erasers in ((p, terms[p]) for p in self.layers if p in terms):
            weight, base = weights[path], self.layers[path].base
            assert base is not None
            base = base.to(weight)
            apart = (weight.double() - base.double()).cpu()
            own = [(place[id(eraser)], eraser) for eraser in erasers]
            _add_products(own, path, base.float(), apart, gram, along)
        if not names or not along.isfinite().all():
            return dict.fromkeys(loaded, 1.0) | dict.fromkeys(names, float("nan"))
        shares = torch.linalg.lstsq(gram, along[:, None]).solution[:, 0].tolist()
        return dict.fromkeys(loaded, 1.0) | dict(zip(names, shares, strict=True))

    def _base(self, layer: nn.Linear, path: str) -> Tensor:
        """W0 in the weight's type and on its device, with what others changed added."""
        weight = layer.weight.detach()
        known = self.layers.get(path)
        if known is None:
            return weight.clone()
        if known.base is None:
            return _sum(weight, path, known.terms, -1.0)
        base = known.base.to(weight)
        if _unchanged(weight, known):
            return base
        written = _sum(known.base.to(weight.device), path, known.terms)
        if torch.equal(written.to(weight), weight):
            return base
        for half in (torch.float16, torch.bfloat16):  # moved to a half precision and back
            if torch.equal(written.to(half).to(weight), weight):
                return known.base.to(half).to(weight)
        return (base.float() + (weight.float() - written.to(weight).float())).to(weight.dtype)


def _require_rewritable(layer: nn.Linear, path: str) -> None:
    if not rewritable(layer):
        weight = layer.weight.detach()
        raise ErasureError(
            f"The weight of '{path}' ({weight.dtype} on {weight.device}) cannot be rewritten; "
            "load the model unquantised and without offloading to add or remove erasures, or "
            'load them with `mode="hook"`.'
        )


def _add_products(
    erasers: list[tuple[int, LoadedEraser]],
    path: str,
    base: Tensor,
    apart: Tensor,
    gram: Tensor,
    along: Tensor,
) -> None:
    """Add  <D_i, D_j>  and  <D_i, W - W0>  of one layer to rows i of `gram` and `along`.

    <B A, B' A'> = tr((B^T B') (A' A^T)): no D (out x in) is computed.
    """
    pairs = [(k, x.strength, *x.adapter.pair(path, base)) for k, x in erasers]
    A = torch.cat([A for _, _, A, _ in pairs]).cpu().double()
    B = torch.cat([s * B for _, s, _, B in pairs], 1).cpu().double()
    owner = torch.tensor([k for k, _, A, _ in pairs for _ in range(len(A))])
    of = torch.zeros(len(gram), len(owner), dtype=gram.dtype)
    of[owner, torch.arange(len(owner))] = 1
    gram += of @ ((B.T @ B) * (A @ A.T)) @ of.T
    along += of @ (B * (apart @ A.T)).sum(0)


def _written(path: str, base: Tensor, weight: Tensor, terms: Together, keep: Keep) -> Written:
    """The record of a written weight; without W0 its terms are a LoRA, which can be subtracted."""
    kept = base.cpu() if keep == "cpu" else base if keep else None
    if not keep and terms.text_map is not None:
        lora = Lora({path: terms.pair(path, product_with(base))})
        terms = Together(None, ((lora, 1.0),))
    return Written(kept, terms, _mark(weight), weight.dtype)


def _sum(base: Tensor, path: str, terms: Together, sign: float = 1.0) -> Tensor:
    """W0 + Σ_i s_i B_i A_i in float32, rounded once; W0 itself where every strength is zero."""
    if terms.empty:
        return base.clone()
    total = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
    A, B = terms.pair(path, product_with(base))
    return total.addmm_(B.to(total), A.to(total), alpha=sign).to(base.dtype)


def _unchanged(weight: Tensor, known: Written) -> bool:
    mark = _mark(weight) if weight.dtype == known.dtype else None
    return mark is not None and torch.equal(mark, known.mark.to(mark.device))


def _mark(weight: Tensor) -> Tensor:
    """Sums of a weight's bits by row and by column, to recognise it by."""
    odd = weight.shape[1] * weight.element_size() % 8
    bits = (weight.double() if odd else weight.contiguous()).view(torch.int64)
    return torch.cat([bits.sum(0), bits.sum(1)])
