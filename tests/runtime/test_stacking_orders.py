"""An eraser acts in whatever order others load, scale, fuse and unload their adapters.

Every call is made on two models: on one with `load_erasure`, on the other the weights are added up
by hand. After each call both must predict the same noise.
"""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusers_erase.models.architectures import linear


CALLS = {
    "load the style": lambda pipe, style: pipe.load_lora_weights(style, adapter_name="S"),
    "set_adapters": lambda pipe, _: pipe.set_adapters("S", 0.5),
    "disable_lora": lambda pipe, _: pipe.disable_lora(),
    "enable_lora": lambda pipe, _: pipe.enable_lora(),
    "fuse_lora": lambda pipe, _: pipe.fuse_lora(adapter_names=["S"]),
    "unfuse_lora": lambda pipe, _: pipe.unfuse_lora(),
    "delete_adapters": lambda pipe, _: pipe.delete_adapters("S"),
    "unload_lora_weights": lambda pipe, _: pipe.unload_lora_weights(),
}
ALLOWED = {
    "none": ("load the style",),
    "loaded": (
        "set_adapters",
        "disable_lora",
        "enable_lora",
        "fuse_lora",
        "delete_adapters",
        "unload_lora_weights",
    ),
    "fused": ("unfuse_lora", "unload_lora_weights"),
}
AFTER = {
    "load the style": "loaded",
    "fuse_lora": "fused",
    "unfuse_lora": "loaded",
    "delete_adapters": "none",
    "unload_lora_weights": "none",
}


def orders():
    """Sequences of calls that diffusers allows, with the eraser put on and off in between."""

    @st.composite
    def several(draw):
        state, on, calls = "none", False, []
        for _ in range(draw(st.integers(2, 8))):
            toggle = "unload_erasure" if on else "load_erasure"
            call = draw(st.sampled_from((toggle, *ALLOWED[state])))
            on ^= call == toggle
            state = AFTER.get(call, state)
            calls.append(call)
        return calls

    return several()


@pytest.fixture(scope="module")
def style_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("style") / "style"


@pytest.mark.parametrize("mode", ["bake", "hook"])
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(calls=orders())
def test_load_erasure_among_adapters_equals_adding_the_eraser_to_the_weights(
    mode, calls, untrained, make_eraser, style_folder
):
    if not style_folder.exists():
        make_eraser(untrained.unet, seed=1, rank=4).save_pretrained(style_folder)
    eraser = make_eraser(untrained.unet, seed=2)
    unet = copy.deepcopy(untrained.unet)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, *[unet.config.sample_size] * 2, generator=generator)
    states = torch.randn(1, 9, unet.config.cross_attention_dim, generator=generator)

    def seen():
        with torch.no_grad():
            return untrained.unet(z, 500, states).sample

    original = untrained.unet
    mine, by_hand, last = copy.deepcopy(unet), copy.deepcopy(unet), seen()
    try:
        for call in calls:
            found = []
            for model in (mine, by_hand):
                untrained.unet = model
                if call in CALLS:
                    CALLS[call](untrained, style_folder)
                elif model is by_hand:
                    sign = 1 if call == "load_erasure" else -1
                    for path in eraser.factors:
                        linear(model, path).weight.data += sign * eraser.delta(path)
                elif call == "load_erasure":
                    untrained.load_erasure(eraser, "x", mode=mode)
                else:
                    untrained.unload_erasure("x")
                found.append(seen())
            assert torch.allclose(*found, atol=1e-4), call
            if call == "load_erasure":
                assert not torch.allclose(found[0], last, atol=1e-2)
            last = found[0]
    finally:
        untrained.unet = original
