"""Two erasers on one pipeline, and as one file: any strength, off without a trace, one to share."""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import make_image_grid

from diffusers_erase import Concept, erase, stack
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.playground import OBJECTS, load_judge, load_pipeline


def main(folder: Path, steps: int | None) -> None:
    pipe, judge = load_pipeline(), load_judge()
    car = erase(pipe, "car", vocabulary=OBJECTS, steps=steps, allow_weak=steps is not None)
    painter = erase(
        pipe, Concept("van gyre", kind="style"), steps=steps, allow_weak=steps is not None
    )
    original = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}

    pipe.load_erasure([car, painter], name=["car", "painter"], strength=0.0)
    prompt = "a painting of a red car in the style of van gyre"
    pictures = []
    for strengths in product((0.0, 1.0), repeat=2):
        pipe.set_erasure_strength(["car", "painter"], strengths)
        pictures += draw(pipe, [prompt])
        (seen,) = judge(pictures[-1:])
        print(f"car {strengths[0]:.0f}, painter {strengths[1]:.0f}: {seen.label}, {seen.style}")
    for name, loaded in pipe.list_erasures().items():
        for other, share in loaded.interference.items():
            print(f"{other!r} does to {name!r} {share:.0%} of what its own eraser does.")
    pipe.unload_erasures()
    same = all(torch.equal(w, original[name]) for name, w in pipe.unet.state_dict().items())
    print(f"After unloading, the weights are the original ones bit for bit: {same}")

    shared = stack([car, painter]).save_pretrained(folder / "erase-both", overwrite=True)
    pipe.load_erasure(shared)  # `push_to_hub("user/erase-both")` shares it with everybody
    (together,) = draw(pipe, [prompt])
    apart = np.abs(np.asarray(together, int) - np.asarray(pictures[-1], int)).max()
    print(f"One file of both draws the same: a pixel differs by {apart} of 255 at most")
    files = ", ".join(sorted(path.name for path in shared.iterdir()))
    print(f"{shared}: {files}")

    make_image_grid(pictures, 1, len(pictures)).save(folder / "stack.png")
    print(f"None, painter, car, both erased: {folder / 'stack.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=None)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    main(arguments.out, arguments.steps)
