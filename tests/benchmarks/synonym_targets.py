"""Erasing a concept towards another name of it: is it still drawn? (AGE, arXiv 2501.18950, sec. 3)

python tests/benchmarks/synonym_targets.py
"""

from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase
from diffusers_erase.playground import COLOURS, OBJECTS, SYNONYMS, load_judge, load_pipeline


CONCEPTS = ("truck", "car", "plane", "cat")


def left(recipe: str, name: str, target: str) -> Rate:
    pipe, words = load_pipeline(), [word for word in OBJECTS if word != name]
    eraser = erase(
        pipe,
        Concept(name),
        target=target,
        vocabulary=words,
        recipe=recipe,
        progress=False,
        check=False,
    )
    pipe.load_erasure(eraser, name)
    sampler = PipelineSampler(pipe, load_judge(), Sampling(10, 5.0, "bfloat16", 32))
    prompts = [f"a photo of a {colour} {name}" for colour in COLOURS for _ in range(3)]
    shown = sampler.shows(sampler.draw(prompts, range(len(prompts))), [name])
    return Rate(sum(shown), len(shown))


def main() -> None:
    for recipe in ("replace", "closed-form"):
        for name in CONCEPTS:
            target = SYNONYMS[name][0]
            print(f"{recipe}, {name} as {target}: still drawn in {left(recipe, name, target)}")


if __name__ == "__main__":
    main()
