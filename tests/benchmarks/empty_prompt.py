"""How far an eraser moves the empty prompt's picture in half precision, in each way of loading.

python tests/benchmarks/empty_prompt.py
"""

import argparse
from typing import Any

import numpy as np
import torch

from diffusers_erase.making.api import erase
from diffusers_erase.playground import load_pipeline


WAYS: dict[str, dict[str, Any]] = {
    "bake": {"mode": "bake"},
    "hook": {"mode": "hook"},
    'hook, keep_null="exact"': {"mode": "hook", "keep_null": "exact"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concept", default="dog")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    options = parser.parse_args()
    how = {"recipe": "closed-form", "check": False, "progress": False}
    eraser = erase(load_pipeline(), options.concept, **how)
    print(f"| precision | {' | '.join(WAYS)} |\n| --- |{' ---: |' * len(WAYS)}")
    for dtype in options.dtypes:
        pipe = load_pipeline().to(getattr(torch, dtype))
        pipe.set_progress_bar_config(disable=True)

        def picture(pipe: Any = pipe) -> np.ndarray:
            seed = torch.Generator().manual_seed(0)
            (image,) = pipe("", num_inference_steps=options.steps, generator=seed).images
            return np.asarray(image).astype(int)

        base, moved = picture(), []
        for way in WAYS.values():
            pipe.load_erasure(eraser, **way)
            moved.append(str(np.abs(picture() - base).max()))
            pipe.unload_erasures()
        print(f"| {dtype} | {' | '.join(moved)} |", flush=True)


if __name__ == "__main__":
    main()
