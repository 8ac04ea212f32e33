"""W = W0 + sum_i s_i B_i A_i, from a pristine W0: any order and strength, and back bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from diffusers_erase.crossattention import linear
from diffusers_erase.errors import ErasureError
from diffusers_erase.runtime.force import Active


_WRITABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Pristine:
    """A layer's weight before any eraser, and what was last written in its place."""

    weight: Tensor
    written: Tensor


@dataclass(frozen=True)
class Write:
    """A weight as it is to be, and as it was a moment ago."""

    layer: nn.Linear
    pristine: Pristine
    before: Tensor
    kept: bool
    """Whether an eraser is left on this layer, so that its pristine weight is still needed."""


def rewritable(layer: nn.Linear) -> bool:
    """Whether a layer's weight is there, in numbers that can be added to."""
    weight = layer.weight.detach()
    plain = type(layer.weight.data) is Tensor and not weight.is_meta
    return plain and weight.dtype in _WRITABLE


@dataclass
class Baked:
    """The pristine weights of the layers that erasers were written into."""

    pristine: dict[str, Pristine] = field(default_factory=dict)

    def plan(self, unet: nn.Module, loaded: Mapping[str, Active]) -> dict[str, Write]:
        """Path -> what is to be written so that these erasers are in force; nothing is changed.

        What others did to a weight since it was last written (a style LoRA fused in, a move to
        another precision) is found by comparison and kept.

        Raises:
            ErasureError: a weight cannot be rewritten.
        """
        reached = {name: set(force.adapter.paths(unet)) for name, force in loaded.items()}
        touched = set[str]().union(*reached.values())
        plans = {}
        for path in sorted(touched | set(self.pristine)):
            layer = linear(unet, path)
            base, before = self._base(layer, path)
            here = {name: loaded[name] for name, paths in reached.items() if path in paths}
            written = _sum(base, path, here) if here else base.clone()
            plans[path] = Write(layer, Pristine(base, written), before, path in touched)
        return plans

    @torch.no_grad()
    def apply(self, plans: Mapping[str, Write]) -> None:
        """Write; if one weight refuses, all that were written before it are as they were."""
        done: list[Write] = []
        try:
            for plan in plans.values():
                done.append(plan)
                plan.layer.weight.copy_(plan.pristine.written)
        except BaseException:
            undo(done)
            raise
        self.pristine = {path: plan.pristine for path, plan in plans.items() if plan.kept}

    @torch.no_grad()
    def acting(self, unet: nn.Module, loaded: Mapping[str, Active]) -> dict[str, float]:
        """Name -> x_i of  argmin_x  Σ_layers |(W - W0) - Σ_i x_i s_i D_i|^2.

        1 for an eraser of strength zero, which acts as asked. Strengths and changes as loaded, W
        the weights as they are now.
        """
        names = [name for name, force in loaded.items() if force.strength]
        gram = torch.zeros(len(names), len(names), dtype=torch.float64)
        along = torch.zeros(len(names), dtype=torch.float64)
        for path, known in self.pristine.items():
            weight = linear(unet, path).weight.detach()
            base = known.weight.to(weight)
            there = [k for k, n in enumerate(names) if path in loaded[n].adapter.paths(unet)]
            changes = [
                (force.strength * force.adapter.delta(path, base)).flatten().double()
                for force in (loaded[names[k]] for k in there)
            ]
            apart = (weight.double() - base.double()).cpu().flatten()
            for k, change in zip(there, changes, strict=True):
                along[k] += change @ apart
                for j, other in zip(there, changes, strict=True):
                    gram[k, j] += change @ other
        shares = torch.linalg.lstsq(gram, along[:, None]).solution[:, 0].tolist() if names else []
        return dict.fromkeys(loaded, 1.0) | dict(zip(names, shares, strict=True))

    def _base(self, layer: nn.Linear, path: str) -> tuple[Tensor, Tensor]:
        """W0 in the weight's present precision and place, with foreign changes added; and W."""
        weight = layer.weight.detach()
        if not rewritable(layer):
            raise ErasureError(
                f"The weight of '{path}' ({weight.dtype} on {weight.device}) cannot be rewritten; "
                "load the model unquantised and without offloading to add or remove erasures, or "
                'load them with `mode="hook"`.'
            )
        known = self.pristine.get(path)
        if known is None:
            pristine = weight.clone()
            return pristine, pristine
        expected = known.written.to(weight)
        base = known.weight.to(weight)
        if torch.equal(expected, weight):
            return base, expected
        before = weight.clone()
        for half in (torch.float16, torch.bfloat16):  # moved to a half precision and back
            if torch.equal(known.written.to(half).to(weight), weight):
                return known.weight.to(half).to(weight), before
        return (base.float() + (weight.float() - expected.float())).to(weight.dtype), before


def undo(plans: list[Write]) -> None:
    """Every weight as it was before its plan."""
    with torch.no_grad():
        for plan in plans:
            plan.layer.weight.copy_(plan.before)


def _sum(base: Tensor, path: str, loaded: Mapping[str, Active]) -> Tensor:
    """W0 + sum_i s_i B_i A_i in float32, rounded once; W0 itself where every strength is zero."""
    total = torch.zeros(base.shape, dtype=torch.float32)
    for force in loaded.values():
        if force.strength:
            total += force.strength * force.adapter.delta(path, base)
    if not total.any():
        return base.clone()
    return (base.float() + total.to(base.device)).to(base.dtype)
