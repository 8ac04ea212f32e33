"""Erasers as ordinary adapters of the denoiser, which other adapters' calls switch off."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from torch import Tensor, nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import linear
from diffusers_erase.runtime.fused_projections import fused_weights
from diffusers_erase.runtime.loaded_eraser import LoadedEraser, factors_of


SILENCED_BY = (
    "an ordinary adapter is switched off by `load_lora_weights`, `set_adapters`, `disable_lora`, "
    "`delete_adapters` and `unload_lora_weights`, and scaled by `cross_attention_kwargs`"
)


@dataclass
class Adapted:
    """The erasers that are worn as adapters, by name, and what the denoiser calls them."""

    worn: dict[str, LoadedEraser] = field(default_factory=dict)

    def apply(
        self, unet: Any, loaded: Mapping[str, LoadedEraser], pristine: Mapping[str, Tensor]
    ) -> None:
        """Put on what is missing, take off what is gone, and make all of these active.

        Other adapters stay active, or idle, at the scales they have.

        Args:
            unet: the denoiser.
            loaded: the erasers of this mode.
            pristine: the weights of layers that other erasers are written into.
        """
        if not loaded and not self.worn:
            return
        former, self.worn = self.worn, dict(loaded)
        ours = {*map(adapter_name, former), *map(adapter_name, loaded)}
        others = {
            path: [name for name in layer.active_adapters if name not in ours]
            for path, layer in _wrapped(unet)
        }
        for path, layer in _wrapped(unet):  # else the next adapter would take a deleted one's place
            layer.set_adapter(others[path])
        for name, eraser in former.items():
            stays = name in loaded and loaded[name].adapter is eraser.adapter
            if not stays and adapter_name(name) in getattr(unet, "peft_config", {}):
                unet.delete_adapters(adapter_name(name))
        for name, eraser in loaded.items():
            if adapter_name(name) not in getattr(unet, "peft_config", {}):
                _put_on(unet, adapter_name(name), eraser, pristine)
        for path, layer in _wrapped(unet):
            own = [name for name in loaded if adapter_name(name) in layer.lora_A]
            layer.set_adapter([*others.get(path, ()), *map(adapter_name, own)])
            for name in own:
                layer.set_scale(adapter_name(name), loaded[name].strength)
                for half in (layer.lora_A, layer.lora_B):
                    half[adapter_name(name)].requires_grad_(False)
        if not getattr(unet, "peft_config", {}) and any(True for _ in _wrapped(unet)):
            unet.unload_lora()

    def acting(self, unet: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, float]:
        """Name -> how much of an eraser its layers add now, on their mean."""
        found, fused = {}, fused_weights(unet)
        layers = {path: layer for path, layer in _wrapped(unet) if path not in fused}
        for name, eraser in loaded.items():
            paths = eraser.adapter.paths(unet) if eraser.strength else ()
            shares = [_share(layers.get(path), name, eraser.strength) for path in paths]
            found[name] = sum(shares) / len(shares) if shares else 1.0
        return found


def check_unfused(unet: nn.Module) -> None:
    """Refuse while adapters are fused into the weights: to change any would take them out again.

    Raises:
        ErasureError: some are.
    """
    fused = {name for _, layer in _wrapped(unet) for name in layer.merged_adapters}
    if fused:
        raise ErasureError(
            f"Adapters are fused into the weights ({', '.join(sorted(fused))}), and erasers that "
            "are adapters cannot be changed then; call `pipe.unfuse_lora()` first, or load the "
            'eraser with `mode="bake"`.'
        )


def adapter_name(name: str) -> str:
    """What peft calls an eraser: it takes names of modules, which have no dots."""
    plain = re.sub(r"\W", "_", name)
    return f"erasure_{plain}" + (
        "" if plain == name else f"_{sha256(name.encode()).hexdigest()[:8]}"
    )


def _put_on(unet: Any, adapter: str, eraser: LoadedEraser, pristine: Mapping[str, Tensor]) -> None:
    tensors = {}
    for path in eraser.adapter.paths(unet):
        layer = linear(unet, path)
        A, B = factors_of(eraser, path, layer, pristine.get(path, _readable(layer)))
        tensors[f"unet.{path}.lora_A.weight"], tensors[f"unet.{path}.lora_B.weight"] = A, B
    unet.load_lora_adapter(tensors, prefix="unet", adapter_name=adapter)


def _readable(layer: nn.Linear) -> Tensor | None:
    weight = layer.weight.detach()
    return weight if weight.dtype.is_floating_point and not weight.is_meta else None


def _wrapped(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path -> layers that wear adapters, by the path of the linear layer inside."""
    for path, module in unet.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield path, module


def _share(layer: Any, name: str, strength: float) -> float:
    adapter = adapter_name(name)
    if layer is None or adapter not in layer.active_adapters or layer.disable_adapters:
        return 0.0
    if layer.merged_adapters and adapter not in layer.merged_adapters:
        return 0.0
    return float(layer.scaling[adapter]) / strength
