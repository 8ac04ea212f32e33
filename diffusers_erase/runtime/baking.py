"""W = W0 + sum_i s_i B_i A_i, from a pristine W0: any order and strength, and back bit for bit."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from diffusers_erase.adapter import EraserAdapter
from diffusers_erase.crossattention import linear
from diffusers_erase.errors import ErasureError


_WRITABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Pristine:
    """A layer's weight before any eraser, and what was last written in its place."""

    weight: Tensor
    written: Tensor


@dataclass
class Erasures:
    """The erasers on one denoiser; kept there, so that pipelines which share it see the same."""

    loaded: dict[str, tuple[EraserAdapter, float]] = field(default_factory=dict)
    pristine: dict[str, Pristine] = field(default_factory=dict)
    disabled: bool = False
    """Inside `erasures_disabled`: nothing may change until its end."""

    def rebake(self, unet: nn.Module, loaded: dict[str, tuple[EraserAdapter, float]]) -> None:
        """Make `loaded` the erasers in force; all is computed and checked before the first write.

        What others did to a weight since it was last written (a style LoRA fused in, a move to
        another precision) is found by comparison and kept.

        Raises:
            ErasureError: an eraser does not fit, or weights cannot be rewritten; nothing is
                changed.
        """
        for adapter, _ in loaded.values():
            adapter.check(unet)
        reached = {name: set(adapter.paths(unet)) for name, (adapter, _) in loaded.items()}
        touched = set[str]().union(*reached.values())
        plans: list[tuple[str, nn.Linear, Pristine]] = []
        for path in sorted(touched | set(self.pristine)):
            layer = linear(unet, path)
            base = self._base(layer, path)
            here = {name: loaded[name] for name, paths in reached.items() if path in paths}
            written = _sum(base, path, here) if here else base.clone()
            plans.append((path, layer, Pristine(base, written)))
        with torch.no_grad():
            for path, layer, plan in plans:
                layer.weight.copy_(plan.written)
                self.pristine[path] = plan
        for path in set(self.pristine) - touched:
            del self.pristine[path]
        self.loaded = loaded

    @torch.no_grad()
    def acting(self, unet: nn.Module) -> dict[str, float]:
        """Name -> x_i of  argmin_x  Σ_layers |(W - W0) - Σ_i x_i s_i D_i|^2.

        1 for an eraser of strength zero, which acts as asked. Strengths and changes as loaded, W
        the weights as they are now.
        """
        names = [name for name, (_, strength) in self.loaded.items() if strength]
        gram = torch.zeros(len(names), len(names), dtype=torch.float64)
        along = torch.zeros(len(names), dtype=torch.float64)
        for path, known in self.pristine.items():
            weight = linear(unet, path).weight.detach()
            base = known.weight.to(weight)
            there = [k for k, n in enumerate(names) if path in self.loaded[n][0].paths(unet)]
            changes = [
                (strength * adapter.delta(path, base)).flatten().double()
                for adapter, strength in (self.loaded[names[k]] for k in there)
            ]
            apart = (weight.double() - base.double()).cpu().flatten()
            for k, change in zip(there, changes, strict=True):
                along[k] += change @ apart
                for j, other in zip(there, changes, strict=True):
                    gram[k, j] += change @ other
        shares = torch.linalg.lstsq(gram, along[:, None]).solution[:, 0].tolist() if names else []
        return dict.fromkeys(self.loaded, 1.0) | dict(zip(names, shares, strict=True))

    def _base(self, layer: nn.Linear, path: str) -> Tensor:
        """W0 in the weight's present precision and place, with foreign changes added."""
        weight = layer.weight.detach()
        plain = type(layer.weight.data) is Tensor and not weight.is_meta
        if not plain or weight.dtype not in _WRITABLE:
            raise ErasureError(
                f"The weight of '{path}' ({weight.dtype} on {weight.device}) cannot be rewritten; "
                "load the model unquantised and without offloading to add or remove erasures."
            )
        known = self.pristine.get(path)
        if known is None:
            return weight.clone()
        expected = known.written.to(weight)
        base = known.weight.to(weight)
        if torch.equal(expected, weight):
            return base
        for half in (torch.float16, torch.bfloat16):  # moved to a half precision and back
            if torch.equal(known.written.to(half).to(weight), weight):
                return known.weight.to(half).to(weight)
        return (base.float() + (weight.float() - expected.float())).to(weight.dtype)


def _sum(base: Tensor, path: str, loaded: dict[str, tuple[EraserAdapter, float]]) -> Tensor:
    """W0 + sum_i s_i B_i A_i in float32, rounded once; W0 itself where every strength is zero."""
    total = torch.zeros(base.shape, dtype=torch.float32)
    in_order = sorted(loaded.items(), key=lambda item: item[0])  # the order of loading is no matter
    for _, (adapter, strength) in in_order:
        if strength:
            total += strength * adapter.delta(path, base)
    if not total.any():
        return base.clone()
    return (base.float() + total.to(base.device)).to(base.dtype)
