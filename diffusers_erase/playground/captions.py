"""Captions of the world that name a concept: prompts to erase it in."""

import random
import re

from diffusers_erase.playground.world import ARTISTS, OBJECTS, captions, sample_scene


def captions_with(name: str, count: int = 32, *, seed: int = 0) -> tuple[str, ...]:
    """`count` different captions that name an object or a painter, with `{}` in the name's place.

    They serve as `Concept(name, prompts=captions_with(name))`. Pairs of things, places and styles
    are as frequent among them as in the world.

    Raises:
        ValueError: the world has neither an object nor a painter of that name.
    """
    if name not in (*OBJECTS, *ARTISTS.values()):
        raise ValueError(f"The playground has no object or painter {name!r}.")
    rng = random.Random(f"{seed} {name}")
    whole = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    longer = [other for other in OBJECTS if other != name and whole.search(other)]
    found: dict[str, None] = {}
    while len(found) < count:
        scene = sample_scene(rng)
        shown = (*(thing.object for thing in scene.things), ARTISTS.get(scene.style))
        if name not in shown or any(other in shown for other in longer):
            continue
        (caption,) = captions(scene, seed=rng.randrange(2**31), count=1)
        if len(whole.findall(caption)) == 1:
            found[whole.sub("{}", caption)] = None
    return tuple(found)
