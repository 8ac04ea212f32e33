"""Erasers as ordinary adapters of peft, which calls for other adapters can switch off."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

from torch import Tensor, nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import linear
from diffusers_erase.runtime.fused_projections import fused_weights
from diffusers_erase.runtime.loaded_eraser import Change, LoadedEraser, Planning, factors_of


SWITCHED_OFF_BY = (
    "an ordinary adapter is switched off by `load_lora_weights`, `set_adapters`, `disable_lora`, "
    "`delete_adapters` and `unload_lora_weights`, and scaled by `cross_attention_kwargs`"
)


Adapters = dict[str, tuple[LoadedEraser, dict[str, Tensor]]]
"""Name -> eraser, and the LoRA it amounts to with the keys that diffusers reads."""


@dataclass
class Adapted:
    """Backend that adds erasers to the denoiser as ordinary adapters of peft."""

    added: Adapters = field(default_factory=dict)

    def plan(
        self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser], planning: Planning
    ) -> Change:
        """Compute the erasers' LoRAs.

        Raises:
            ErasureError: adapters are fused into the weights; any change would take them out.
        """
        layers = _wrapped(denoiser) if loaded or self.added else ()
        merged = sorted({name for _, layer in layers for name in layer.merged_adapters})
        if merged:
            raise ErasureError(
                f"Adapters are fused into the weights ({', '.join(merged)}), and erasers that are "
                "adapters cannot be changed then; call `pipe.unfuse_lora()` first, or load the "
                'eraser with `mode="bake"`.'
            )
        wanted = {
            name: (x, self._known(name, x) or _lora(denoiser, x, planning))
            for name, x in loaded.items()
        }
        return Change(
            partial(self._set, denoiser, wanted), partial(self._set, denoiser, self.added)
        )

    def _known(self, name: str, eraser: LoadedEraser) -> dict[str, Tensor]:
        """The LoRA of an eraser that is among the adapters already; empty if it is not."""
        former, lora = self.added.get(name, (None, {}))
        return lora if former is not None and former.adapter is eraser.adapter else {}

    def _set(self, unet: Any, wanted: Adapters) -> None:
        """Add the adapters that are missing, delete those that are gone, and activate all.

        Adapters of others stay active, or idle, at the scales they have.
        """
        if not wanted and not self.added:
            return
        former, self.added = self.added, wanted
        ours = {*map(adapter_name, former), *map(adapter_name, wanted)}
        others = {
            path: [name for name in layer.active_adapters if name not in ours]
            for path, layer in _wrapped(unet)
        }
        for path, layer in _wrapped(unet):  # else the next adapter would take a deleted one's place
            layer.set_adapter(others[path])
        for name, (eraser, _) in former.items():
            stays = name in wanted and wanted[name][0].adapter is eraser.adapter
            if not stays and adapter_name(name) in getattr(unet, "peft_config", {}):
                unet.delete_adapters(adapter_name(name))
        for name, (_, lora) in wanted.items():
            adapter = adapter_name(name)
            if adapter not in getattr(unet, "peft_config", {}):
                unet.load_lora_adapter(lora, prefix="unet", adapter_name=adapter)
        for path, layer in _wrapped(unet):
            own = [name for name in wanted if adapter_name(name) in layer.lora_A]
            layer.set_adapter([*others.get(path, ()), *map(adapter_name, own)])
            for name in own:
                layer.set_scale(adapter_name(name), wanted[name][0].strength)
                for half in (layer.lora_A, layer.lora_B):
                    half[adapter_name(name)].requires_grad_(False)
        if not getattr(unet, "peft_config", {}) and any(True for _ in _wrapped(unet)):
            unet.unload_lora()

    def bases(self) -> dict[str, Tensor]:
        """No weights: none is written."""
        return {}

    def acting(self, unet: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, float]:
        """Name -> mean over an eraser's layers of the share at which its adapter is active."""
        found, fused = {}, fused_weights(unet)
        layers = {path: layer for path, layer in _wrapped(unet) if path not in fused}
        for name, eraser in loaded.items():
            paths = eraser.adapter.paths(unet) if eraser.strength else ()
            shares = [_share(layers.get(path), name, eraser.strength) for path in paths]
            found[name] = sum(shares) / len(shares) if shares else 1.0
        return found


def adapter_name(name: str) -> str:
    """The name of an eraser's adapter; peft allows no dots in it."""
    plain = re.sub(r"\W", "_", name)
    suffix = "" if plain == name else f"_{sha256(name.encode()).hexdigest()[:8]}"
    return f"erasure_{plain}{suffix}"


def _lora(unet: nn.Module, eraser: LoadedEraser, planning: Planning) -> dict[str, Tensor]:
    tensors = {}
    for path in eraser.adapter.paths(unet):
        layer = linear(unet, path)
        weight = layer.weight.detach()
        readable = weight.is_floating_point() and not weight.is_meta
        base = planning.bases.get(path, weight if readable else None)
        A, B = factors_of(eraser.adapter.source, path, layer, base)
        tensors[f"unet.{path}.lora_A.weight"], tensors[f"unet.{path}.lora_B.weight"] = A, B
    return tensors


def _wrapped(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path of a linear layer, and the layer with adapters that peft wraps around it."""
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
