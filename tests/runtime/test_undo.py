"""After any sequence of loading, changing and unloading the weights are the original ones."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusers_erase import (
    EraserAdapter,
    ErasureError,
    erasures_disabled,
    list_erasures,
    load_erasure,
    set_erasure_strength,
    unload_erasure,
    unload_erasures,
    verify_erasures,
)
from diffusers_erase.eraser.text_map import TextMap


pytestmark = pytest.mark.filterwarnings("ignore:.*an ordinary adapter is switched off")

STRENGTHS = st.sampled_from([0.0, 1.0, -1.0, 0.3, 2.5, 1e-6, 100.0])
NAMES = st.sampled_from("abc")
MODES = st.sampled_from(["auto", "bake", "hook", "adapter"])
CALLS = st.one_of(
    st.tuples(st.just("load"), NAMES, STRENGTHS, MODES),
    st.tuples(st.just("strength"), NAMES, STRENGTHS),
    st.tuples(st.just("unload"), NAMES),
    st.tuples(st.just("unload all")),
    st.tuples(st.just("disable")),
    st.tuples(st.just("keep on the cpu"), NAMES, STRENGTHS),
)


def carried_out(unet, erasers, call):
    """One call of a user; a name that is taken or not there is refused, and nothing else."""
    kind, *given_ = call
    try:
        if kind == "load":
            name, strength, mode = given_
            load_erasure(unet, erasers[name], name=name, strength=strength, mode=mode)
        elif kind == "keep on the cpu":
            name, strength = given_
            load_erasure(unet, erasers[name], name=name, strength=strength, keep_base="cpu")
        elif kind == "strength":
            set_erasure_strength(unet, *given_)
        elif kind == "unload":
            unload_erasure(unet, *given_)
        elif kind == "disable":
            with erasures_disabled(unet):
                assert not list_erasures(unet)
        else:
            unload_erasures(unet)
    except ErasureError as refusal:
        if "loaded" not in str(refusal):
            raise


@pytest.mark.parametrize(
    ("dtype", "examples"),
    [(torch.float32, 20), (torch.float16, 8), (torch.bfloat16, 8)],
    ids=str,
)
def test_last_unload_erasure_restores_the_original_weights_bit_for_bit(
    untrained_parts, make_eraser, dtype, examples
):
    original = copy.deepcopy(untrained_parts["unet"]).to(dtype)
    width = original.config.cross_attention_dim
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.randn(width, 2, generator=generator) * 0.1 for _ in "UV")
    mapped = make_eraser(original, concept="c").config
    erasers = {
        "a": make_eraser(original, seed=1),
        "b": make_eraser(original, seed=2, parts=("to_q", "to_v", "to_out.0")),
        "c": EraserAdapter((TextMap(U.double(), V.double()),), mapped),
    }
    before = original.state_dict()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(CALLS, max_size=12))
    def check(calls):
        unet = copy.deepcopy(original)
        for call in calls:
            carried_out(unet, erasers, call)
            shares = verify_erasures(unet)
            assert list(shares) == list(list_erasures(unet))
        unload_erasures(unet)
        after = unet.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert not any(module._forward_hooks for module in unet.modules())

    check()


def test_keep_base_false_gives_the_original_weights_back_up_to_rounding(untrained, make_eraser):
    unet = untrained.unet
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    T = TextMap(*(torch.randn(128, 2).double() * 0.1 for _ in "UV"))
    mapped = EraserAdapter((T,), make_eraser(unet).config)
    load_erasure(unet, make_eraser(unet, seed=1), name="a", strength=0.7, keep_base=False)
    load_erasure(unet, mapped, name="b")
    assert not [
        known for known in unet._erasures.backends["bake"].layers.values() if known.base is not None
    ]
    assert verify_erasures(unet) == {"a": 1.0, "b": 1.0}
    path, (A, B) = next(iter(make_eraser(unet, seed=1).factors.items()))
    W = before[f"{path}.weight"]
    expected = W + 0.7 * B @ A + W @ (T.U @ T.V.T).float()
    assert torch.allclose(unet.get_submodule(path).weight, expected, atol=1e-5)
    unet.get_submodule(path).weight.data += 0.5  # a foreign change stays
    assert all(math.isnan(share) for share in verify_erasures(unet).values())
    set_erasure_strength(unet, "a", 0.0)
    unload_erasures(unet)
    for key, found in unet.state_dict().items():
        apart = 0.5 if key == f"{path}.weight" else 0
        assert torch.allclose(found, before[key] + apart, atol=2e-6), key


def test_keep_base_keeps_the_originals_on_the_cpu_or_not_at_all(untrained, make_eraser):
    unet = untrained.unet
    load_erasure(unet, make_eraser(unet, seed=1), name="a", keep_base="cpu")
    load_erasure(unet, make_eraser(unet, seed=2), name="b")
    kept = unet._erasures.backends["bake"].layers
    assert {known.base.device.type for known in kept.values()} == {"cpu"}
    load_erasure(unet, make_eraser(unet, seed=3), name="c", keep_base=False)
    assert {known.base for known in unet._erasures.backends["bake"].layers.values()} == {None}
    with pytest.raises(ErasureError, match='True, False or "cpu"'):
        load_erasure(unet, make_eraser(unet, seed=4), name="d", keep_base="disk")


def test_keep_base_stores_as_many_numbers_as_the_changed_layers_have(untrained, make_eraser):
    unet = untrained.unet
    load_erasure(unet, make_eraser(unet))
    for path, known in unet._erasures.backends["bake"].layers.items():
        weight = unet.get_submodule(path).weight
        assert known.base.numel() == weight.numel()
        assert known.mark.numel() <= sum(weight.shape)
