"""Erasers in hooks: the same pictures as in the weights, and no weight is written."""

import copy

import pytest
import torch
from torch import nn

from diffusers_erase import ErasureError, Vocabulary, erase
from diffusers_erase.models.architectures import projections
from diffusers_erase.runtime import hooking
from tests import zoo


# random erasers interfere, and loading warns of it
pytestmark = pytest.mark.filterwarnings("ignore:The eraser")


def hooks(unet):
    return sum(len(layer._forward_hooks) for layer in projections(unet).values())


def test_hook_mode_draws_what_bake_mode_draws_and_writes_no_weight(untrained, make_eraser, picture):
    unet = untrained.unet
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    base = picture(untrained)
    one = make_eraser(unet, seed=1, scale=0.4, parts=("to_q", "to_k", "to_v", "to_out.0"))
    two = make_eraser(unet, seed=2, scale=0.4, concept="cat")
    untrained.load_erasure([one, two], strength=[1.0, 0.5], mode="bake")
    baked = picture(untrained)
    untrained.unload_erasures()
    untrained.load_erasure([one, two], strength=[0.3, 0.5], mode="hook")
    untrained.set_erasure_strength("car", 1.0)
    assert [x.mode for x in untrained.list_erasures().values()] == ["hook", "hook"]
    assert untrained.verify_erasures() == {"car": 1.0, "cat": 1.0}
    assert abs(picture(untrained) - baked).max() < 3e-5
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    untrained.unload_erasure("car")
    untrained.load_erasure(one, mode="bake")  # one of each
    assert abs(picture(untrained) - baked).max() < 3e-5
    with untrained.erasures_disabled():
        assert abs(picture(untrained) - base).max() == 0
    assert abs(picture(untrained) - baked).max() < 3e-5
    untrained.unload_erasures()
    assert hooks(unet) == 0
    assert abs(picture(untrained) - base).max() == 0


def test_hook_mode_draws_a_text_map_as_bake_mode_does(untrained, picture):
    words = Vocabulary(("truck", "oak", "cat"))
    eraser = erase(untrained, "car", target="truck", vocabulary=words, recipe="uce", check=False)
    untrained.load_erasure(eraser)
    baked = picture(untrained)
    untrained.unload_erasures()
    untrained.load_erasure(eraser.portable, mode="hook")
    assert abs(picture(untrained) - baked).max() < 1e-5


@pytest.mark.parametrize("modes", [("hook", "hook"), ("bake", "hook"), ("hook", "bake")])
def test_text_maps_in_any_pair_of_modes_add_up(untrained, picture, modes):
    words = Vocabulary(("truck", "oak", "fish"))
    several = [
        erase(untrained, name, target="truck", vocabulary=words, recipe="uce", check=False).portable
        for name in ("car", "cat")
    ]
    untrained.load_erasure(several)
    baked = picture(untrained, "a car and a cat")
    untrained.unload_erasures()
    for eraser, mode in zip(several, modes, strict=True):
        untrained.load_erasure(eraser, mode=mode)
    assert abs(picture(untrained, "a car and a cat") - baked).max() < 1e-5
    untrained.set_erasure_strength(["car", "cat"], 1.0)  # all terms are made anew
    assert abs(picture(untrained, "a car and a cat") - baked).max() < 1e-5


def test_hook_mode_uses_the_text_map_where_the_lora_is_of_another_model(untrained, picture):
    words = Vocabulary(("truck", "oak", "fish"))
    eraser = erase(untrained, "car", target="truck", vocabulary=words, recipe="uce", check=False)
    for layer in projections(untrained.unet, ("to_k", "to_v")).values():
        layer.weight.data *= 1.5  # somebody's fine-tune with the same texts
    untrained.load_erasure(eraser)
    baked = picture(untrained)
    untrained.unload_erasures()
    untrained.load_erasure(eraser, mode="hook")
    assert abs(picture(untrained) - baked).max() < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_auto_mode_hooks_weights_in_eight_bits(untrained, make_eraser, picture):
    """Real layerwise casting: stored in float8, computed in float32."""
    eraser = make_eraser(untrained.unet, scale=0.4)
    for parameter in untrained.unet.parameters():
        parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    base = picture(untrained)
    untrained.load_erasure(eraser)
    exact = picture(untrained)
    untrained.unload_erasures()
    untrained.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    with pytest.raises(ErasureError, match="cannot be rewritten"):
        untrained.load_erasure(eraser, mode="bake")
    untrained.load_erasure(eraser)
    assert untrained.list_erasures()["car"].mode == "hook"
    assert abs(picture(untrained) - exact).max() < 1e-4
    untrained.unload_erasures()
    assert abs(picture(untrained) - base).max() < 1e-4


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_hook_mode_follows_the_model_to_another_precision(untrained, make_eraser, half):
    layer = next(iter(projections(untrained.unet, ("to_v",)).values()))
    x = torch.randn(3, layer.in_features)
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.4), mode="hook")
    exact = layer(x)
    untrained.unet.to(half)
    said = layer(x.to(half))
    assert said.dtype is half
    assert torch.allclose(said.float(), exact, atol=0.1, rtol=0.05)


def test_hook_mode_gives_a_copy_of_the_denoiser_hooks_of_its_own(untrained, make_eraser, picture):
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.4), mode="hook")
    erased, mine = picture(untrained), untrained.unet
    other = copy.deepcopy(mine)
    untrained.unload_erasures()
    untrained.unet = other
    assert abs(picture(untrained) - erased).max() < 1e-6
    untrained.unload_erasures()
    assert hooks(other) == 0


def test_hook_mode_compiles_a_compiled_model_anew_for_the_first_hook(
    untrained, make_eraser, picture
):
    untrained.unet = zoo.shallow_unet(128)
    untrained.unet.compile(backend="eager")
    base = picture(untrained)
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.4), mode="bake")
    baked = picture(untrained)
    untrained.unload_erasures()
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.4), mode="hook")
    assert abs(picture(untrained) - baked).max() < 1e-5
    untrained.set_erasure_strength("car", 0.0)
    assert abs(picture(untrained) - base).max() < 1e-6
    untrained.unload_erasures()
    assert abs(picture(untrained) - base).max() < 1e-6


def test_export_erased_refuses_hooks_and_verify_erasures_counts_missing_ones(
    untrained, make_eraser, tmp_path
):
    untrained.load_erasure(make_eraser(untrained.unet), mode="hook")
    with pytest.raises(ErasureError, match="In hooks and not in the weights"):
        untrained.export_erased(tmp_path / "erased")
    layer = next(iter(projections(untrained.unet, ("to_v",)).values()))
    layer._forward_hooks.clear()
    assert 0.5 < untrained.verify_erasures()["car"] < 1
    untrained.fuse_qkv_projections()
    assert untrained.verify_erasures() == {"car": 0.0}


@pytest.mark.parametrize("fails_at", range(4))
def test_load_erasure_changes_nothing_if_a_change_fails_half_way(
    untrained, make_eraser, monkeypatch, fails_at
):
    """Weights and hooks in one call, with a failure at one of the steps."""
    unet = untrained.unet
    untrained.load_erasure(make_eraser(unet, seed=5, concept="former"), mode="bake")
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    steps = 0

    def failing(original):
        def step(*args, **options):
            nonlocal steps
            steps += 1
            if steps == fails_at + 1:
                raise MemoryError("no room")
            return original(*args, **options)

        return step

    monkeypatch.setattr(hooking.Hooked, "_set", failing(hooking.Hooked._set))
    monkeypatch.setattr(
        nn.Module, "register_forward_hook", failing(nn.Module.register_forward_hook)
    )
    with pytest.raises(MemoryError):
        untrained.load_erasure(make_eraser(unet, seed=6), mode="hook")
    monkeypatch.undo()
    assert list(untrained.list_erasures()) == ["former"]
    assert untrained.verify_erasures() == pytest.approx({"former": 1}, abs=1e-4)
    assert hooks(unet) == 0
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    untrained.load_erasure(make_eraser(unet, seed=6), mode="hook")
    assert untrained.verify_erasures() == pytest.approx({"former": 1, "car": 1}, abs=1e-4)


@pytest.mark.parametrize("fails_at", [0, 1, 9, 13, 14])
def test_load_erasure_restores_all_weights_if_one_cannot_be_written(
    untrained, make_eraser, monkeypatch, fails_at
):
    unet, copies = untrained.unet, 0
    several = [make_eraser(unet, seed=k, concept=str(k)) for k in range(2)]
    untrained.load_erasure(make_eraser(unet, seed=5, concept="former"))
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    copy_ = torch.Tensor.copy_

    def failing(*args):
        nonlocal copies
        copies += 1
        if copies == fails_at + 1:
            raise MemoryError("no room")
        return copy_(*args)

    monkeypatch.setattr(torch.Tensor, "copy_", failing)
    if fails_at < len(several[0].factors):
        with pytest.raises(MemoryError):
            untrained.load_erasure(several)
        monkeypatch.undo()
        assert list(untrained.list_erasures()) == ["former"]
        assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
        untrained.unload_erasures()
    else:  # there is one write for each layer and no other
        untrained.load_erasure(several)
        assert copies == len(several[0].factors)
