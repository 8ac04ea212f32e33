"""Erasers in the weights: what is refused before it is written, and what is verified."""

import math

import pytest
import torch

from diffusers_erase import ErasureError
from diffusers_erase.models.architectures import projections


def test_verify_erasures_of_weights_that_are_no_numbers_is_unknown(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))
    layer = next(iter(projections(untrained.unet, ("to_v",)).values()))
    layer.weight.data[0, 0] = float("nan")
    assert math.isnan(untrained.verify_erasures()["car"])


def test_load_erasure_refuses_an_eraser_that_makes_half_precision_weights_infinite(
    untrained, make_eraser
):
    untrained.unet.half()
    before = {k: v.clone() for k, v in untrained.unet.state_dict().items()}
    eraser = make_eraser(untrained.unet, scale=1e3)  # entries of some 1e6
    with pytest.raises(
        ErasureError, match=r"'car' at strength 1, weights of .* infinite in torch.float16"
    ):
        untrained.load_erasure(eraser, mode="bake")
    untrained.load_erasure(eraser, strength=1e-3)
    with pytest.raises(ErasureError, match="infinite"):
        untrained.set_erasure_strength("car", 1.0)
    assert untrained.list_erasures()["car"].strength == 1e-3
    untrained.unload_erasures()
    assert all(torch.equal(v, before[k]) for k, v in untrained.unet.state_dict().items())
