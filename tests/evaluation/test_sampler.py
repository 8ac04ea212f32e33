import pytest
import torch

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.sampler import Sampling, base_digest, fast_precision
from tests import zoo


@pytest.mark.parametrize(
    "name", ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"]
)
def test_base_digest_changes_with_the_weights_of_every_network(untrained_parts, name):
    pipe = zoo.sd3(untrained_parts["tokenizer"])
    before = base_digest(pipe)
    assert base_digest(pipe) == before
    with torch.no_grad():
        next(getattr(pipe, name).parameters()).add_(1e-3)
    assert base_digest(pipe) != before


def test_base_digest_is_that_of_the_pipeline_without_its_erasers(untrained, make_eraser):
    before = base_digest(untrained)
    untrained.load_erasure(make_eraser(untrained.unet), "car")
    assert base_digest(untrained) == before


def test_sampling_refuses_no_steps():
    with pytest.raises(ErasureError, match="`steps` and `batch` of 1 or more"):
        Sampling(steps=0)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [("AVX512", "bfloat16"), ("AVX2", "float32"), ("DEFAULT", "float32")],
)
def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fast_precision() == precision
