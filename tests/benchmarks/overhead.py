"""Cost of an eraser in drawing, loading and changing, at the size of Stable Diffusion 1.5.

python tests/benchmarks/overhead.py

Random weights of the real shapes; nothing is downloaded. Modes take turns within every round, so
that whatever else the machine does befalls all of them, and each is held against the base beside
it. `adapter` is peft's own layer.
"""

import argparse
import random
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffusers_erase import (
    ErasedConcept,
    EraserAdapter,
    EraserConfig,
    load_erasure,
    set_erasure_strength,
    unload_erasures,
)
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.models.architectures import fingerprint, text_layers


MODES = ("base", "bake", "hook", "adapter")


def eraser_of(unet: Any, rank: int, concept: str = "car") -> EraserAdapter:
    """An eraser of all keys and values: 32 layers."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.01

    layers = text_layers(unet)
    factors = {
        path: (normal(rank, x.in_features), normal(x.out_features, rank))
        for path, x in layers.items()
    }
    config = EraserConfig((ErasedConcept(concept),), fingerprint=fingerprint(unet), rank=rank)
    return EraserAdapter((Lora(factors),), config)


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@torch.no_grad()
def drawing(unet: Any, erasers: list[EraserAdapter], side: int, rounds: int) -> None:
    width = unet.config.cross_attention_dim
    given = (torch.randn(2, 4, side, side), torch.tensor(500), torch.randn(2, 77, width))
    given = tuple(x.to(unet.dtype) if x.is_floating_point() else x for x in given)
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
    for turn in range(rounds + 1):
        for mode in random.Random(turn).sample(MODES, len(MODES)):
            if mode != "base":
                load_erasure(unet, erasers, mode=mode)  # type: ignore[call-overload]
            spent = seconds(lambda: unet(*given))
            if turn:  # the first is to warm up
                taken[mode].append(spent)
            unload_erasures(unet)
    print(f"\n| {len(erasers)} erasers, 2 x 4 x {side} x {side} | seconds, median | of the base |")
    print("| --- | ---: | ---: |")
    for mode, spent in taken.items():
        ratios = [a / b for a, b in zip(spent, taken["base"], strict=True)]
        print(f"| {mode} | {median(spent):.2f} | {median(ratios):.2f} |")


def loading(unet: Any, eraser: EraserAdapter, rounds: int) -> None:
    print("\n| call | bake, ms | hook, ms | adapter, ms |\n| --- | ---: | ---: | ---: |")
    calls: dict[str, Callable[[str], Any]] = {
        "load_erasure": lambda mode: load_erasure(unet, eraser, mode=mode),  # type: ignore[call-overload]
        "set_erasure_strength": lambda _: set_erasure_strength(unet, "car", 0.5),
        "unload_erasures": lambda _: unload_erasures(unet),
    }
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for mode in MODES[1:]:
            for name, call in calls.items():
                spent = seconds(lambda call=call, mode=mode: call(mode))
                taken.setdefault((name, mode), []).append(1000 * spent)
    for name in calls:
        times = (f"{median(taken[name, mode]):.0f}" for mode in MODES[1:])
        print(f"| `{name}` | {' | '.join(times)} |")
    load_erasure(unet, eraser)
    kept = [known.base for known in unet._erasures.backends["bake"].layers.values()]
    size = sum(base.numel() * base.element_size() for base in kept if base is not None)
    print(f"\nPristine copy: {len(kept)} layers, {size / 1e6:.1f} MB in {unet.dtype}")
    unload_erasures(unet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--side", type=int, default=32, help="of the latents")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    unet = UNet2DConditionModel(cross_attention_dim=768).to(dtype).eval()
    several = [eraser_of(unet, options.rank, name) for name in ("car", *"abcd")]
    loading(unet, several[0], options.rounds)
    drawing(unet, several[:1], options.side, options.rounds)
    drawing(unet, several, options.side, options.rounds)


if __name__ == "__main__":
    main()
