import numpy as np
import torch

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


def test_draw_gives_each_picture_its_own_value_of_an_argument(untrained):
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = ["a car", "an oak", "a cat"]
    together = draw(untrained, prompts, steps=2, batch=2, each={"latents": latents})
    for i, picture in enumerate(together):
        (alone,) = draw(untrained, prompts[i : i + 1], steps=2, latents=latents[i : i + 1])
        one, two = (np.asarray(p, dtype=int) for p in (picture, alone))
        assert abs(one - two).max() <= 1
