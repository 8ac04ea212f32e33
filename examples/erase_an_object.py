"""Erase an object, save the eraser, load it into a fresh pipeline, and look at the same seeds."""

import argparse
from pathlib import Path

from PIL import Image

from diffusers_erase import Concept, erase
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.playground import OBJECTS, SYNONYMS, load_judge, load_pipeline


def main(folder: Path, steps: int | None) -> None:
    concept = Concept("car", synonyms=SYNONYMS["car"])
    eraser = erase(
        load_pipeline(), concept, vocabulary=OBJECTS, steps=steps, allow_weak=steps is not None
    )
    print(f"Cars are answered as {eraser.config.concepts[0].target}.")
    eraser.save_pretrained(folder / "erase-car", overwrite=True)

    pipe, judge = load_pipeline(), load_judge()
    prompts = ["a photo of a red car", "a photo of a blue automobile", "a photo of a green van"]
    before = draw(pipe, prompts)
    pipe.load_erasure(folder / "erase-car")
    after = draw(pipe, prompts)

    print(f"{'prompt':<30} {'base':<12} erased")
    for prompt, old, new in zip(prompts, judge(before), judge(after), strict=True):
        print(f"{prompt:<30} {old.label:<12} {new.label}")
    sheet = Image.new("RGB", (64 * len(prompts), 128))
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        sheet.paste(old, (64 * i, 0))
        sheet.paste(new, (64 * i, 64))
    sheet.save(folder / "erase-car.png")
    print(f"Base above, erased below: {folder / 'erase-car.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=None)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    main(arguments.out, arguments.steps)
