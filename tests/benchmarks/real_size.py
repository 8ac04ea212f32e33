"""Seconds and gigabytes of an eraser at the size of Stable Diffusion 1.5, on a CUDA card.

python tests/benchmarks/real_size.py --steps 500

Random weights of the real shapes (860 M parameters, 4 x 64 x 64 latents, 77 tokens of width 768),
bfloat16; nothing is downloaded. Says "not measured" where there is no CUDA card.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusers_erase.making.api import erase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.playground import OBJECTS
from diffusers_erase.playground.building import networks
from diffusers_erase.training.recipes import RECIPES


def unet() -> UNet2DConditionModel:
    """diffusers' defaults are Stable Diffusion 1's blocks; only the width of the text is added."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def text_encoder(tokenizer: CLIPTokenizer, layers: int = 12) -> CLIPTextModel:
    """CLIP ViT-L/14's text model, with fewer layers if asked for."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=layers,
            num_attention_heads=12,
            max_position_embeddings=77,
            projection_dim=768,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="surgical-age", choices=sorted(RECIPES))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda", help="`cpu` only to see that it runs")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA card here")
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = networks.write_tokenizer(Path(scratch))
    tokenizer.model_max_length = 77
    pipe = networks.assemble(
        vae=networks.vae(), text_encoder=text_encoder(tokenizer), tokenizer=tokenizer, unet=unet()
    ).to(options.device, torch.bfloat16)
    recipe = replace(RECIPES[options.recipe], steps=options.steps, batch=options.batch)
    started = time.perf_counter()
    with counted(pipe.unet) as evaluations:
        erase(
            pipe,
            "car",
            target="truck",
            vocabulary=OBJECTS,
            recipe=recipe,
            progress=False,
            check=False,
        )
    seconds = time.perf_counter() - started
    size = sum(p.numel() for p in pipe.unet.parameters())
    print(
        f"{recipe.name}: {recipe.steps} steps of {recipe.batch} latents, {size / 1e6:.0f} M "
        f"parameters, {evaluations():,} UNet evaluations, {seconds:.0f} s"
    )
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"{torch.cuda.get_device_name()}: {peak:.1f} GiB at most")


if __name__ == "__main__":
    main()
