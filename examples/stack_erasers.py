"""Two erasers on one pipeline: in any order, at any strength, and off again without a trace."""

import argparse
from itertools import product
from pathlib import Path

import torch
from PIL import Image

from diffusers_erase import Concept, erase
from diffusers_erase.evaluation.metrics import draw
from diffusers_erase.playground import OBJECTS, load_judge, load_pipeline


def main(folder: Path, steps: int | None) -> None:
    pipe, judge = load_pipeline(), load_judge()
    car = erase(pipe, "car", vocabulary=OBJECTS, steps=steps)
    painter = erase(pipe, Concept("van gyre", kind="style"), steps=steps)
    original = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}

    pipe.load_erasure(car, name="car", strength=0.0)
    pipe.load_erasure(painter, name="painter", strength=0.0)
    prompt = "a painting of a red car in the style of van gyre"
    row = []
    for car_strength, painter_strength in product((0.0, 1.0), repeat=2):
        pipe.set_erasure_strength("car", car_strength)
        pipe.set_erasure_strength("painter", painter_strength)
        row += draw(pipe, [prompt])
        (seen,) = judge(row[-1:])
        print(f"car {car_strength:.0f}, painter {painter_strength:.0f}: {seen.label}, {seen.style}")
    pipe.unload_erasures()
    same = all(torch.equal(w, original[name]) for name, w in pipe.unet.state_dict().items())
    print(f"After unloading, the weights are the original ones bit for bit: {same}")

    sheet = Image.new("RGB", (64 * len(row), 64))
    for i, picture in enumerate(row):
        sheet.paste(picture, (64 * i, 0))
    sheet.save(folder / "stack.png")
    print(f"None, painter, car, both erased: {folder / 'stack.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=None)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    main(arguments.out, arguments.steps)
