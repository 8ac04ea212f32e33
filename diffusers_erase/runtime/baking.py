"""W = W0 + sum_i s_i B_i A_i, from a pristine W0: any order and strength, and back bit for bit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import linear
from diffusers_erase.runtime.fused_projections import fused_weights
from diffusers_erase.runtime.loaded_eraser import LoadedEraser


_WRITABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Keep = Literal["cpu"] | bool
"""Whether pristine weights are kept: beside the weights, on the CPU, or not at all."""


@dataclass(frozen=True)
class Written:
    """A layer that erasers are written into."""

    base: Tensor | None
    """W0, its weight before any eraser; None where it was given up."""
    terms: tuple[LoadedEraser, ...]
    """The erasers in its weight."""
    mark: Tensor
    """Of the weight as it was written: whether somebody else wrote since."""
    dtype: torch.dtype
    """Of that weight."""


@dataclass(frozen=True)
class Write:
    """A weight as it is to be, and as it was a moment ago."""

    layer: nn.Linear
    base: Tensor
    weight: Tensor
    before: Tensor
    terms: tuple[LoadedEraser, ...]


def rewritable(layer: nn.Linear) -> bool:
    """Whether a layer's weight is there, in numbers that can be added to."""
    weight = layer.weight.detach()
    plain = type(layer.weight.data) is Tensor and not weight.is_meta
    return plain and weight.dtype in _WRITABLE


@dataclass
class Baked:
    """What is known of the layers that erasers were written into."""

    layers: dict[str, Written] = field(default_factory=dict)

    def plan(self, unet: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, Write]:
        """Path -> what is to be written so that these erasers are in force; nothing is changed.

        What others did to a weight since it was last written (a style LoRA fused in, a move to
        another precision) is found by its mark and kept.

        Raises:
            ErasureError: a weight cannot be rewritten.
        """
        terms: dict[str, list[LoadedEraser]] = {path: [] for path in self.layers}
        for eraser in loaded.values():
            for path in eraser.adapter.paths(unet):
                terms.setdefault(path, []).append(eraser)
        plans = {}
        for path in sorted(terms):
            layer = linear(unet, path)
            _check(layer, path)
            base, before = self._base(layer, path), layer.weight.detach().clone()
            plans[path] = Write(
                layer, base, _sum(base, path, terms[path]), before, tuple(terms[path])
            )
        return plans

    @torch.no_grad()
    def apply(self, plans: Mapping[str, Write], keep: Keep) -> None:
        """Write; if one weight refuses, all that were written before it are as they were."""
        done: list[Write] = []
        try:
            for plan in plans.values():
                done.append(plan)
                plan.layer.weight.copy_(plan.weight)
        except BaseException:
            undo(done)
            raise
        self.layers = {
            path: Written(_kept(plan.base, keep), plan.terms, _mark(plan.weight), plan.weight.dtype)
            for path, plan in plans.items()
            if plan.terms
        }

    @torch.no_grad()
    def acting(self, unet: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, float]:
        """Name -> x_i of  argmin_x  Σ_layers |(W - W0) - Σ_i x_i s_i D_i|^2.

        1 for an eraser of strength zero, which acts as asked. Where W0 was given up: 1 as long as
        every weight is the one that was written, else nan; nan too where W is not to be seen
        (offloaded). Strengths and changes as loaded, W the weights as they are used now.
        """
        names = [name for name, eraser in loaded.items() if eraser.strength]
        fused = fused_weights(unet)
        weights = {p: fused.get(p, linear(unet, p).weight.detach()) for p in self.layers}
        seen = not any(weight.is_meta for weight in weights.values())
        if not seen or any(known.base is None for known in self.layers.values()):
            kept = seen and all(_unchanged(weights[p], known) for p, known in self.layers.items())
            return dict.fromkeys(loaded, 1.0) | dict.fromkeys(names, 1.0 if kept else float("nan"))
        gram = torch.zeros(len(names), len(names), dtype=torch.float64)
        along = torch.zeros(len(names), dtype=torch.float64)
        for path, known in self.layers.items():
            weight = weights[path]
            assert known.base is not None
            base = known.base.to(weight)
            there = [k for k, n in enumerate(names) if path in loaded[n].adapter.paths(unet)]
            changes = [
                (eraser.strength * eraser.adapter.delta(path, base)).cpu().flatten().double()
                for eraser in (loaded[names[k]] for k in there)
            ]
            apart = (weight.double() - base.double()).cpu().flatten()
            for k, change in zip(there, changes, strict=True):
                along[k] += change @ apart
                for j, other in zip(there, changes, strict=True):
                    gram[k, j] += change @ other
        shares = torch.linalg.lstsq(gram, along[:, None]).solution[:, 0].tolist() if names else []
        return dict.fromkeys(loaded, 1.0) | dict(zip(names, shares, strict=True))

    def _base(self, layer: nn.Linear, path: str) -> Tensor:
        """W0 in the weight's present precision and place, with foreign changes added."""
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


def undo(plans: Iterable[Write]) -> None:
    """Every weight as it was before its plan."""
    with torch.no_grad():
        for plan in plans:
            plan.layer.weight.copy_(plan.before)


def _check(layer: nn.Linear, path: str) -> None:
    if not rewritable(layer):
        weight = layer.weight.detach()
        raise ErasureError(
            f"The weight of '{path}' ({weight.dtype} on {weight.device}) cannot be rewritten; "
            "load the model unquantised and without offloading to add or remove erasures, or "
            'load them with `mode="hook"`.'
        )


def _kept(base: Tensor, keep: Keep) -> Tensor | None:
    if keep == "cpu":
        return base.cpu()
    return base if keep else None


def _sum(base: Tensor, path: str, terms: Iterable[LoadedEraser], sign: float = 1.0) -> Tensor:
    """W0 + sum_i s_i B_i A_i in float32, rounded once; W0 itself where every strength is zero."""
    there = [eraser for eraser in terms if eraser.strength]
    total = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
    for eraser in there:
        A, B = eraser.adapter.pair(path, base)
        total.addmm_(B.to(total), A.to(total), alpha=sign * eraser.strength)
    return total.to(base.dtype) if there else base.clone()


def _unchanged(weight: Tensor, known: Written) -> bool:
    mark = _mark(weight) if weight.dtype == known.dtype else None
    return mark is not None and torch.equal(mark, known.mark.to(mark.device))


def _mark(weight: Tensor) -> Tensor:
    """Sums of a weight's bits by row and by column: a change that keeps all of them is none."""
    odd = weight.shape[1] * weight.element_size() % 8
    bits = (weight.double() if odd else weight.contiguous()).view(torch.int64)
    return torch.cat([bits.sum(0), bits.sum(1)])
