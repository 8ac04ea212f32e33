"""Erasers beside other changes of a model, made before they are loaded or after."""

import copy
from itertools import product

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

from diffusers_erase.models.architectures import linear
from tests import zoo


pytestmark = pytest.mark.filterwarnings("ignore:The eraser")

CPU = torch.device("cpu")


def compiled_in_place(pipe):
    pipe.unet.compile(backend="eager")


def compiled_around(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def offloaded_in_groups(pipe):
    apply_group_offloading(
        pipe.unet, onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
    )


def offloaded_to_nowhere(pipe):
    cpu_offload(pipe.unet, execution_device=CPU)  # as `enable_sequential_cpu_offload` does


def with_a_learnt_word(pipe):
    width = pipe.text_encoder.config.hidden_size
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    pipe.load_textual_inversion({"<thing>": vector}, token="<thing>")


def with_an_image_prompt(pipe):
    zoo.load_image_prompt(pipe.unet)  # the test passes the embedding of the picture


CHANGES = [
    compiled_in_place,
    compiled_around,
    offloaded_in_groups,
    offloaded_to_nowhere,
    with_a_learnt_word,
    with_an_image_prompt,
]


@pytest.fixture
def own(untrained, untrained_parts):
    """The pipeline, with a text encoder and a tokenizer that may be changed."""
    untrained.text_encoder = copy.deepcopy(untrained_parts["text_encoder"])
    untrained.tokenizer = copy.deepcopy(untrained_parts["tokenizer"])
    return untrained


COMPILED_BY_DEFAULT = {("hook", True, compiled_in_place), ("hook", False, compiled_around)}
"""Each way of compiling once; compiling takes long, and a hook is what it could miss."""


def cases():
    for mode, before, change in product(("auto", "hook"), (True, False), CHANGES):
        compiles = change in (compiled_in_place, compiled_around)
        slow = compiles and (mode, before, change) not in COMPILED_BY_DEFAULT
        name = f"{mode}-{'before' if before else 'after'}-{change.__name__}"
        yield pytest.param(change, before, mode, id=name, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(("change", "before", "mode"), [*cases()])
def test_load_erasure_acts_beside_other_changes_of_the_model(
    own, make_eraser, picture, change, before, mode
):
    if change in (compiled_in_place, compiled_around):
        own.unet = zoo.shallow_unet(128)
    pipe, other = own, copy.deepcopy(own)
    eraser = make_eraser(pipe.unet, parts=("to_q", "to_k", "to_v", "to_out.0"), scale=0.4, seed=1)
    options = {}
    prompt = "a photo of a red car"
    if change is with_an_image_prompt:
        options = {"ip_adapter_image_embeds": [torch.ones(2, 1, 16)]}
    if change is with_a_learnt_word:
        prompt = "a photo of a <thing> car"
    for path in eraser.factors:
        linear(other.unet, path).weight.data += eraser.delta(path)
    change(other)
    expected = picture(other, prompt, **options)
    if before:
        change(pipe)
        plain = picture(pipe, prompt, **options)
        assert abs(plain - expected).max() > 1e-3
        pipe.load_erasure(eraser, mode=mode)
    else:
        pipe.load_erasure(eraser, mode=mode)
        change(pipe)
    assert abs(picture(pipe, prompt, **options) - expected).max() < 1e-4
    if mode == "hook" or (before and change is offloaded_to_nowhere):
        assert pipe.list_erasures()["car"].mode == "hook"
    if before:
        pipe.unload_erasures()
        assert abs(picture(pipe, prompt, **options) - plain).max() == 0
