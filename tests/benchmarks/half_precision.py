"""How far the precision and the rank of a saved LoRA move pictures, against the eraser as made.

python tests/benchmarks/half_precision.py closed-form surgical-age
"""

import argparse
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusers_erase import EraserAdapter, erase
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.models.architectures import Factors, text_weights
from diffusers_erase.models.model import Model
from diffusers_erase.playground import OBJECTS, load_pipeline


CONCEPT = "car"
PROMPTS = [
    f"a photo of a {colour} {thing}"
    for thing in (CONCEPT, "bus", "dog", "oak", "circle", "castle")
    for colour in ("red", "blue", "green", "yellow")
]


def pictures(pipe: Any, eraser: EraserAdapter | None, prompts: list[str]) -> np.ndarray:
    if eraser is not None:
        pipe.load_erasure(eraser, mode="bake")
    drawn = draw(pipe, prompts, steps=10)
    pipe.unload_erasures()
    return np.stack([np.asarray(picture) for picture in drawn]).astype(int)


def rounded(factors: Any, dtype: torch.dtype) -> dict[str, Factors]:
    return {path: (A.to(dtype).float(), B.to(dtype).float()) for path, (A, B) in factors.items()}


def thinner(pipe: Any, eraser: EraserAdapter, rank: int) -> dict[str, Factors]:
    """Factors of the best map of a rank, for the states of prompts about the concept."""
    prompts = eraser.config.example_prompts(16)
    E: Tensor = Model.of(pipe).encode(prompts).flatten(0, 1).double()
    assert eraser.text_map is not None
    map, _ = eraser.text_map.truncated(rank, second_moment=E.T @ E)
    return map.factors(text_weights(pipe.unet))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    recipes = parser.parse_args().recipes
    warnings.simplefilter("ignore")
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    print("| recipe | LoRA | largest, of 255 | mean | above 5 of 255 | empty prompt, largest |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for recipe in recipes:
        with torch.enable_grad():
            eraser = erase(
                pipe, CONCEPT, vocabulary=OBJECTS, recipe=recipe, check=False, progress=False
            )
        ways = {
            str(dtype).removeprefix("torch."): rounded(eraser.factors, dtype)
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        }
        if eraser.text_map is not None:
            for rank in (4, 6):
                ways[f"float16, rank {rank}"] = rounded(thinner(pipe, eraser, rank), torch.float16)
        lists = (PROMPTS, [""] * 4)
        made = [pictures(pipe, eraser, prompts) for prompts in lists]
        rows: dict[str, Any] = {"none: the base": None} | {
            way: EraserAdapter((Lora(factors),), eraser.config) for way, factors in ways.items()
        }
        for way, one in rows.items():
            shown, empty = (
                np.abs(pictures(pipe, one, prompts) - known)
                for prompts, known in zip(lists, made, strict=True)
            )
            print(
                f"| {recipe}, rank {eraser.config.rank} | {way} | {shown.max()} | "
                f"{shown.mean():.3f} | {(shown > 5).mean():.2%} | {empty.max()} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
