import math

import numpy as np
import pytest

from diffusers_erase.evaluation.metrics import Rate, difference, draw


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 64, 0.0, 0.0566),
        (32, 64, 0.3810, 0.6190),
        (64, 64, 0.9434, 1.0),
        (8, 10, 0.4902, 0.9433),
    ],
)
def test_the_interval_is_wilsons(hits, n, low, high):
    assert Rate(hits, n).interval == pytest.approx((low, high), abs=1e-4)


def test_the_interval_solves_wilsons_equation():
    """Its ends are the p for which the observed share lies 1.96 standard errors away."""
    rate = Rate(7, 40)
    for p in rate.interval:
        assert abs(rate.value - p) == pytest.approx(
            1.959964 * math.sqrt(p * (1 - p) / rate.n), rel=1e-6
        )


def test_rates_add_up_and_nothing_is_not_zero():
    assert Rate(1, 4) + Rate(2, 6) == Rate(3, 10)
    assert math.isnan(Rate(0, 0).value)
    assert Rate(0, 0).interval == (0.0, 1.0)
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        Rate(5, 4)


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(untrained):
    prompts = ["a car", "an oak", "a cat"]
    together = draw(untrained, prompts, steps=2, seed=5)
    alone = draw(untrained, prompts, steps=2, seed=5, batch=1)
    other = draw(untrained, prompts, steps=2, seed=6)
    for one, two, three in zip(together, alone, other, strict=True):
        one, two, three = (np.asarray(p, dtype=int) for p in (one, two, three))
        assert abs(one - two).max() <= 1
        assert abs(one - three).max() > 1


def test_a_difference_has_newcombes_interval():
    """56 of 70 against 48 of 80, his table II(a)."""
    assert difference(Rate(48, 80), Rate(56, 70)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = difference(Rate(64, 64), Rate(0, 64))
    assert -1 <= low < high < -0.9
