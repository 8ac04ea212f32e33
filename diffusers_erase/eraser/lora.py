"""The payload `lora`: low-rank changes of linear layers, in files that other programs read."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.card import literal
from diffusers_erase.eraser.config import EraserConfig
from diffusers_erase.eraser.lora_formats import factors_in, kohya_keys, peft_keys
from diffusers_erase.eraser.products import Product, require_finite
from diffusers_erase.eraser.safetensors_io import opened, serialized
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.lowrank import compressed
from diffusers_erase.models.architectures import (
    Factors,
    architecture_or_default,
    linear,
    reads_text,
)


@dataclass(frozen=True)
class Lora:
    """W -> W + B A in linear layers of one denoiser."""

    name: ClassVar[str] = "lora"
    file: ClassVar[str] = "pytorch_lora_weights.safetensors"

    factors: Mapping[str, Factors]
    """Path of a layer -> A (rank x in) and B (out x rank), float32 on the CPU."""

    def __post_init__(self) -> None:
        if not self.factors:
            raise ErasureError("The eraser has no LoRA weights.")
        for path, (A, B) in self.factors.items():
            if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or not len(A):
                shapes = " and ".join(" x ".join(map(str, x.shape)) for x in (A, B))
                raise ErasureError(f"LoRA factors of '{path}' do not fit each other: {shapes}.")
            require_finite(A, B, f"The LoRA of '{path}'")

    @classmethod
    def of(cls, best: Mapping[str, tuple[Tensor, Tensor, float]]) -> tuple["Lora", float]:
        """The LoRA of each layer's A, B and kept share of energy, and the share kept in all."""
        energy = [(float((B @ A).square().sum()), kept) for A, B, kept in best.values()]
        total = sum(size / kept for size, kept in energy)
        share = sum(size for size, _ in energy) / total if total else 1.0
        return cls({path: (A, B) for path, (A, B, _) in best.items()}), share

    def __str__(self) -> str:
        return f"LoRA of rank {self.rank} on {len(self.factors)} layers"

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return max(len(A) for A, _ in self.factors.values())

    def tensors(self) -> list[Tensor]:
        """A and B of every layer, in the order of their paths."""
        return [x for path in sorted(self.factors) for x in self.factors[path]]

    @classmethod
    def is_in(cls, names: Collection[str]) -> bool:
        """True if a file with tensors of these names holds a LoRA."""
        return any("lora" in name for name in names)

    @classmethod
    def read(cls, path: Path) -> "Lora":
        """Read the LoRA in a file."""
        return cls(factors_in(opened(path)))

    def files(self, config: EraserConfig, repo_id: str) -> dict[str, bytes]:
        """One file: for a UNet with kohya's keys, which all programs read, else with diffusers'."""
        dtype = getattr(torch, config.dtype)
        factors = {path: (A.to(dtype), B.to(dtype)) for path, (A, B) in self.factors.items()}
        if not all(x.isfinite().all() for pair in factors.values() for x in pair):
            raise ErasureError(f"The eraser holds numbers too large for {config.dtype}.")
        row = architecture_or_default(str(config.fingerprint.get("denoiser", "")))
        about = {"format": "pt", "erasure": json.dumps(config.to_dict())}
        if row.kohya:
            tensors, header = kohya_keys(factors)
            about["modelspec.title"] = f"Erases {config.title}"
        else:
            tensors, header = peft_keys(factors, row.component)
        return {self.file: serialized(tensors, {**header, **about})}

    def usage(self, repo_id: str) -> list[str]:
        """Lines of the card: the LoRA is read by diffusers, and that of a UNet by others too."""
        return [
            f"It is an ordinary LoRA too: `pipe.load_lora_weights({literal(repo_id)})` works "
            "without `diffusers_erase`,\nbut the next adapter that is loaded switches it off. Of a "
            f"UNet's eraser, ComfyUI and A1111 read `{self.file}` as well."
        ]

    def check(self, denoiser: nn.Module) -> None:
        """Refuse a denoiser that lacks a layer, or has it in another shape."""
        for path, (A, B) in self.factors.items():
            try:
                layer = linear(denoiser, path)
                found = f"{layer.out_features} x {layer.in_features}"
            except ErasureError:
                found = "missing"
            if found != f"{len(B)} x {A.shape[1]}":
                raise ErasureError(f"'{path}' should be {len(B)} x {A.shape[1]} and is {found}.")

    def paths(self, denoiser: nn.Module) -> tuple[str, ...]:
        """The layers that it changes."""
        return tuple(self.factors)

    def pair(self, path: str, product: Product) -> Factors:
        """A and B of one layer."""
        return self.factors[path]

    @classmethod
    def summed(cls, loras: Sequence["Lora"]) -> "Lora":
        """Σ_i B_i A_i in every layer, by concatenation; refuses layers of different shapes."""
        factors: dict[str, Factors] = {}
        for path in dict.fromkeys(path for lora in loras for path in lora.factors):
            own = [lora.factors[path] for lora in loras if path in lora.factors]
            shapes = {f"{len(B)} x {A.shape[1]}": None for A, B in own}
            if len(shapes) > 1:
                raise ErasureError(
                    "The erasers are for different models: to one of them "
                    f"'{path}' is {' and to another one '.join(shapes)}."
                )
            factors[path] = torch.cat([A for A, _ in own]), torch.cat([B for _, B in own], 1)
        return cls(factors)

    def scaled(self, strength: float) -> "Lora":
        """B A -> s B A."""
        return Lora({path: (A, strength * B) for path, (A, B) in self.factors.items()})

    def through(self, N: Tensor) -> "Lora":
        """A -> A N in the layers that read the text, N width x width."""
        changed = {
            p: (A.double() @ N).float() for p, (A, _) in self.factors.items() if reads_text(p)
        }
        return Lora({path: (changed.get(path, A), B) for path, (A, B) in self.factors.items()})

    def compact(self, rank: int | None) -> tuple["Lora", float]:
        """The best change of a rank in every layer, and the share of all energy that it keeps."""
        return Lora.of({path: compressed(*pair, rank) for path, pair in self.factors.items()})
