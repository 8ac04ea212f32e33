"""Effect of skipping most padding of a long list of prompts.

python tests/benchmarks/thinning.py

Every object of the playground is erased in closed form, told of nothing, from thinned statistics
and from all states (see `editing.prior.thinned`). How far apart are the maps, are the targets the
same, and how much more does the one move the states of the other objects?
"""

from contextlib import contextmanager

import torch

from diffusers_erase.concepts import Concept
from diffusers_erase.editing import prior
from diffusers_erase.making.api import erase
from diffusers_erase.models.text_states import encode
from diffusers_erase.playground import OBJECTS, SYNONYMS, load_pipeline


@contextmanager
def everything_seen():
    seen, prior.SEEN = prior.SEEN, 10**9
    try:
        yield
    finally:
        prior.SEEN = seen


def main():
    pipe = load_pipeline()
    states = {word: encode(pipe, [f"a photo of a red {word}"])[0].double() for word in OBJECTS}
    apart, harm, same = [], [], 0
    for word in OBJECTS:
        concept = Concept(word, synonyms=SYNONYMS.get(word, ()))
        thin = erase(pipe, concept, recipe="closed-form", check=False)
        target = thin.config.concepts[0].target
        with everything_seen():
            chosen = (
                erase(pipe, concept, recipe="closed-form", check=False).config.concepts[0].target
            )
            whole = erase(pipe, concept, recipe="closed-form", target=target, check=False)
        same += chosen == target
        P, Q = thin.text_map.change, whole.text_map.change
        apart.append(float((P - Q).norm() / Q.norm()))
        E = torch.cat([E for other, E in states.items() if other != word])
        harm.append(float((E @ P.T).square().sum() / (E @ Q.T).square().sum()))
    apart, harm = torch.tensor(apart), torch.tensor(harm)
    print(f"{same} of {len(OBJECTS)} targets are the same")
    print(f"maps apart by {apart.mean():.1%} in the mean, {apart.max():.1%} at most")
    print(f"others moved by {harm.mean():.3f} of before, {harm.min():.3f} to {harm.max():.3f}")


if __name__ == "__main__":
    main()
