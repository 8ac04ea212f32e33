"""Bytes of a saved eraser of the closed form, at the size of Stable Diffusion 1.5 and XL.

python tests/benchmarks/file_sizes.py

Random weights in the real shapes of the layers that read the text; the other layers have none.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from diffusers_erase import ErasedConcept, EraserAdapter, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.models.architectures import fingerprint, text_layers, text_weights


MODELS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1.5": {"cross_attention_dim": 768},
    "Stable Diffusion XL": {
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
    },
}


def with_text_layers(kind: Any, dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    """A denoiser whose layers that read the text have random weights, and the others none."""
    with torch.device("meta"):
        denoiser = kind(**sizes)
    generator = torch.Generator().manual_seed(0)
    for layer in text_layers(denoiser).values():
        weight = torch.randn(layer.weight.shape, generator=generator)
        layer.weight = nn.Parameter((weight / layer.in_features**0.5).to(dtype))
    return denoiser


@torch.no_grad()
def solved_eraser(unet: Any, rank: int, seed: int = 0, concept: str = "car") -> EraserAdapter:
    """A random text map with columns of falling size, and its LoRA for this denoiser."""
    weights = text_weights(unet)
    width = next(iter(weights.values())).shape[1]
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.randn(width, rank, generator=generator).double() for _ in "UV")
    sizes = 0.5 ** torch.arange(rank)
    text_map = TextMap(torch.linalg.qr(U).Q, torch.linalg.qr(V).Q * sizes)
    config = EraserConfig(
        (ErasedConcept(concept),), fingerprint=fingerprint(unet), rank=rank, dtype="float16"
    )
    return EraserAdapter((Lora(text_map.factors(weights)), text_map), config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    for name, sizes in MODELS.items():
        eraser = solved_eraser(with_text_layers(UNet2DConditionModel, **sizes), options.rank)
        for title, one in ((name, eraser), (f"{name}, portable", eraser.portable)):
            with tempfile.TemporaryDirectory() as scratch:
                folder = one.save_pretrained(Path(scratch) / "erase-car")
                files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            print(f"{title}: {sum(files.values()):,} bytes")
            for path, size in files.items():
                print(f"  {size:>12,}  {path}")


if __name__ == "__main__":
    main()
