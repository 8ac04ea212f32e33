import numpy as np

from diffusers_erase.evaluation.pictures import draw


def test_draw_depends_on_the_seed_and_not_on_the_batch(untrained):
    prompts = ["a car", "an oak", "a cat"]
    together = draw(untrained, prompts, steps=2, seed=5)
    alone = draw(untrained, prompts, steps=2, seed=5, batch=1)
    other = draw(untrained, prompts, steps=2, seed=6)
    for one, two, three in zip(together, alone, other, strict=True):
        one, two, three = (np.asarray(p, dtype=int) for p in (one, two, three))
        assert abs(one - two).max() <= 1
        assert abs(one - three).max() > 1
