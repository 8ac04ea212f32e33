from collections import Counter

import torch

from diffusers_erase.training.pool import apportioned


def test_seats_are_apportioned_as_the_weights_are():
    weights = torch.tensor([4.0, 1.0, 2.0])
    assert Counter(apportioned(weights, 7)) == {0: 4, 2: 2, 1: 1}
    assert apportioned(weights, 1) == [0]
    assert Counter(apportioned(torch.ones(3), 5)).most_common()[-1][1] == 1
