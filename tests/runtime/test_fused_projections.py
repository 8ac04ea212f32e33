"""Copies of projections that `fuse_qkv_projections` makes: what acts on them is verified."""

import pytest
import torch

from diffusers_erase.models.architectures import linear
from diffusers_erase.runtime.fused_projections import fused_weights
from tests import zoo


pytestmark = pytest.mark.filterwarnings("ignore:.*an ordinary adapter is switched off")


@pytest.mark.parametrize("family", ["sd1", "sd3", "flux"])
def test_fused_projections_have_the_weights_of_the_projections_until_unfused(untrained, family):
    pipe = untrained if family == "sd1" else getattr(zoo, family)(untrained.tokenizer)
    denoiser = pipe.unet if family == "sd1" else pipe.transformer
    assert fused_weights(denoiser) == {}
    denoiser.fuse_qkv_projections()
    found = fused_weights(denoiser)
    assert found
    for path, weight in found.items():
        assert torch.equal(weight, linear(denoiser, path).weight)
    denoiser.unfuse_qkv_projections()
    assert fused_weights(denoiser) == {}


@pytest.mark.parametrize(("mode", "share"), [("bake", 1.0), ("hook", 0.5), ("adapter", 0.5)])
def test_verify_erasures_counts_what_the_fused_copies_hold(untrained, make_eraser, mode, share):
    """A cross-attention fuses its keys and values, and goes on to call its query by itself."""
    untrained.load_erasure(make_eraser(untrained.unet, parts=("to_q", "to_k")), mode=mode)
    untrained.fuse_qkv_projections()
    assert untrained.verify_erasures()["car"] == pytest.approx(share, abs=1e-4)


def test_verify_erasures_sees_that_a_fused_copy_was_rewritten(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet, parts=("to_v",)))
    base = {
        path: known.base for path, known in untrained.unet._erasures.backends["bake"].layers.items()
    }
    untrained.fuse_qkv_projections()
    for path, weight in fused_weights(untrained.unet).items():
        weight.copy_(base.get(path, weight))
    assert untrained.verify_erasures()["car"] == pytest.approx(0, abs=1e-4)
