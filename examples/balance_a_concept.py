"""Sailboats are mostly by the sea in the playground's world; they can be taken elsewhere."""

import argparse

from diffusers_erase import debias
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.playground import OBJECTS, load_judge, load_pipeline


PLACES = {
    "beach": "{} on the beach",
    "field": "{} in a field",
    "night": "{} at night",
    "snow": "{} in the snow",
    "sunset": "{} at sunset",
}


def main(steps: int, count: int, rounds: int, places: list[str]) -> None:
    pipe, judge = load_pipeline(), load_judge()

    def seen(word: str):
        return judge(draw(pipe, [f"a photo of a {word}"] * count, steps=steps))

    def shares(eraser=None):
        if eraser is not None:
            pipe.load_erasure(eraser)
        found = seen("sailboat")
        pipe.unload_erasures()
        by_place = {p: sum(v.background == p for v in found) / count for p in places}
        boats = sum("sailboat" in v.objects for v in found)
        told = ", ".join(f"{place} {share:.2f}" for place, share in by_place.items())
        print(f"{told}; {boats} of {count} are sailboats", flush=True)
        return list(by_place.values())

    others = [word for word in OBJECTS if word != "sailboat"]
    ways = [PLACES[place] for place in places]
    balanced = debias(pipe, "sailboat", ways, shares, vocabulary=others, rounds=rounds)
    pipe.load_erasure(balanced)
    print("best:", balanced.config.results)
    for word in ("submarine", "car"):
        kept = sum(word in v.objects for v in seen(word))
        print(f"{word}: {kept} of {count} with it loaded")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--count", type=int, default=32, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--places", nargs="+", choices=PLACES, default=["beach", "field", "night"])
    options = parser.parse_args()
    main(options.steps, options.count, options.rounds, options.places)
