"""Seconds and memory of many erasers on the layers of Stable Diffusion 1.5 that read the text.

python tests/benchmarks/many.py --erasers 50 200

Random weights of the real shapes; the other layers have none. Erasers are those of the closed form,
a text map of rank 8 and its LoRA, read from folders. `products` are those with a layer's weight.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import UNet2DConditionModel
from file_sizes import solved_eraser, with_text_layers

from diffusers_erase import load_erasure, set_erasure_strength, unload_erasure, unload_erasures
from diffusers_erase.eraser.text_map import TextMap


class Products:
    """Counts the products of text maps with a layer's weight."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Products":
        original = TextMap.pair

        def pair(text_map: TextMap, path: str, product: Any) -> Any:
            self.count += 1
            return original(text_map, path, product)

        self._patch = patch.object(TextMap, "pair", pair)
        self._patch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._patch.stop()


def row(name: str, call: Callable[[], Any]) -> None:
    started = time.perf_counter()
    with Products() as products:
        call()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    spent = time.perf_counter() - started
    print(f"| {name} | {spent:.2f} | {products.count:,} | {peak:,.0f} |", flush=True)


def rows(unet: Any, sources: list[str], mode: Any) -> None:
    """The calls for all sources but the last, which is loaded beside them."""
    *sources, last = sources
    names = [f"thing {k}" for k in range(len(sources))]
    row("load all", lambda: load_erasure(unet, sources, mode=mode))
    row("load one more", lambda: load_erasure(unet, last, name="last", mode=mode))
    row("strengths of all", lambda: set_erasure_strength(unet, names, [0.5] * len(names)))
    row("strength of one", lambda: set_erasure_strength(unet, names[0], 1.0))
    row("unload one", lambda: unload_erasure(unet, "last"))
    row("unload all", lambda: unload_erasures(unet))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--erasers", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--modes", nargs="+", default=["bake", "hook"])
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    unet = with_text_layers(
        UNet2DConditionModel, getattr(torch, options.dtype), sample_size=64, cross_attention_dim=768
    )
    with tempfile.TemporaryDirectory() as scratch:
        sources = [f"{scratch}/{k}" for k in range(max(options.erasers) + 1)]
        for k, source in enumerate(sources):
            solved_eraser(unet, rank=8, seed=k, concept=f"thing {k}").save_pretrained(Path(source))
        for mode in options.modes:
            for count in options.erasers:
                print(f"\n| {count} erasers, {mode} | s | products | peak MB |")
                print("| --- | ---: | ---: | ---: |")
                rows(unet, sources[: count + 1], mode)


if __name__ == "__main__":
    main()
