"""Closed-form erasers take a second each, and damage neighbours that nobody listed."""

import argparse
import time
from dataclasses import replace

from diffusers_erase import erase
from diffusers_erase.editing.recipes import CLOSED_FORM
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.playground import COLOURS, FAMILIES, OBJECTS, load_judge, load_pipeline


def main(steps: int) -> None:
    pipe, judge = load_pipeline(), load_judge()
    family = next(members for members in FAMILIES.values() if "car" in members)
    near = [word for word in family if word != "car"]
    far = [word for word in OBJECTS if word not in family]
    prompts = {
        "the car itself": [("car", f"a photo of a {c} car") for c in COLOURS if c != "orange"],
        "its neighbours": [(w, f"a photo of a {c} {w}") for w in near for c in ("red", "green")],
        "far objects": [(w, f"a photo of a red {w}") for w in far],
    }

    def told(label: str) -> None:
        counts = []
        for several in prompts.values():
            seen = judge(draw(pipe, [prompt for _, prompt in several], steps=steps))
            hits = sum(word in v.objects for (word, _), v in zip(several, seen, strict=True))
            counts.append(f"{hits:>3} of {len(several)}")
        print(f"{label:<28}" + "".join(f"{count:>18}" for count in counts), flush=True)

    alone = replace(CLOSED_FORM, general=False)  # nothing but what is listed is kept
    print(" " * 28 + "".join(f"{group:>18}" for group in prompts))
    told("base")
    listed = {"far objects are kept": far, "all others are kept": far + near}
    for label, words in listed.items():
        started = time.perf_counter()
        eraser = erase(pipe, "car", target="van", vocabulary=words, recipe=alone)
        label += f" ({time.perf_counter() - started:.1f} s)"
        pipe.load_erasure(eraser)
        told(label)
        pipe.unload_erasures()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    main(parser.parse_args().steps)
