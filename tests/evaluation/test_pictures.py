import numpy as np

from diffusers_erase.evaluation.pictures import draw


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(untrained):
    prompts = ["a car", "an oak", "a cat"]
    together = draw(untrained, prompts, steps=2, seed=5)
    alone = draw(untrained, prompts, steps=2, seed=5, batch=1)
    other = draw(untrained, prompts, steps=2, seed=6)
    for one, two, three in zip(together, alone, other, strict=True):
        one, two, three = (np.asarray(p, dtype=int) for p in (one, two, three))
        assert abs(one - two).max() <= 1
        assert abs(one - three).max() > 1
