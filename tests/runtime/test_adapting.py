"""Erasers as ordinary adapters: what they draw, what switches them off, how they are unloaded."""

import pytest
import torch

from diffusers_erase import EraserAdapter, ErasureError, Vocabulary, erase
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.models.architectures import projections


pytestmark = [
    pytest.mark.filterwarnings("ignore:The eraser"),
    pytest.mark.filterwarnings("ignore:.*an ordinary adapter is switched off"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]


@pytest.fixture
def style(make_eraser, untrained, tmp_path):
    """Somebody's LoRA, in a folder."""
    return make_eraser(untrained.unet, seed=9, scale=0.3).save_pretrained(tmp_path / "style")


def state(unet):
    return {k: v.clone() for k, v in unet.state_dict().items()}


def same(unet, before):
    after = unet.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in after)


def test_adapter_mode_draws_what_bake_mode_draws_and_leaves_no_trace(
    untrained, make_eraser, picture
):
    before = state(untrained.unet)
    several = [
        make_eraser(untrained.unet, seed=1, scale=0.4, parts=("to_q", "to_k", "to_out.0")),
        make_eraser(untrained.unet, seed=2, scale=0.4, concept="v. gyre", rank=3),
    ]
    untrained.load_erasure(several, strength=[0.7, -0.5])
    baked = picture(untrained)
    untrained.unload_erasures()
    with pytest.warns(UserWarning, match="an ordinary adapter is switched off"):
        untrained.load_erasure(several, strength=[0.1, -0.5], mode="adapter")
    assert abs(picture(untrained) - baked).max() > 1e-3
    untrained.set_erasure_strength("car", 0.7)
    assert abs(picture(untrained) - baked).max() < 1e-5
    assert untrained.verify_erasures() == pytest.approx({"car": 1, "v. gyre": 1})
    assert not any(p.requires_grad for n, p in untrained.unet.named_parameters() if "lora" in n)
    with untrained.erasures_disabled():
        assert same(untrained.unet, before)
    assert abs(picture(untrained) - baked).max() < 1e-5
    untrained.unload_erasure("car")
    untrained.load_erasure(several[0], strength=0.7)  # one of each
    assert abs(picture(untrained) - baked).max() < 1e-5
    untrained.unload_erasures()
    assert same(untrained.unet, before)
    assert not getattr(untrained.unet, "peft_config", {})


def test_adapter_mode_draws_a_text_map_as_its_lora(untrained, picture):
    eraser = erase(
        untrained, "car", vocabulary=Vocabulary(("oak", "cat", "van")), recipe="uce", check=False
    )
    untrained.load_erasure(eraser)
    baked = picture(untrained)
    untrained.load_erasure(eraser.portable, name="again", strength=0.5, mode="adapter")
    both = picture(untrained)
    untrained.unload_erasures()
    untrained.load_erasure(eraser, strength=1.5)
    assert abs(picture(untrained) - both).max() < 1e-5
    assert abs(both - baked).max() > 1e-4


def test_verify_erasures_sees_an_adapter_switched_off_and_the_next_change_restores_it(
    untrained, make_eraser, picture, style
):
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.4), mode="adapter")
    for switch_off in (
        lambda: untrained.load_lora_weights(style, adapter_name="S"),
        lambda: untrained.set_adapters("S"),
        lambda: untrained.unload_lora_weights(),
    ):
        assert untrained.verify_erasures() == pytest.approx({"car": 1})
        switch_off()
        assert untrained.verify_erasures() == {"car": 0}
        untrained.set_erasure_strength("car", 1.0)
    untrained.disable_lora()
    assert untrained.verify_erasures() == {"car": 0}


def test_adapter_mode_leaves_the_adapters_of_others_as_they_are(
    untrained, make_eraser, picture, style
):
    untrained.load_lora_weights(style, adapter_name="S")
    untrained.load_lora_weights(style, adapter_name="idle")
    untrained.set_adapters("S", 0.3)
    styled = picture(untrained)
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.4), mode="adapter")
    both = picture(untrained)
    assert untrained.get_active_adapters() == ["S", "erasure_car"]
    untrained.unload_erasures()
    assert untrained.get_active_adapters() == ["S"]
    assert untrained.get_list_adapters() == {"unet": ["S", "idle"]}
    assert abs(picture(untrained) - styled).max() < 1e-6
    assert abs(both - styled).max() > 1e-3


def test_load_erasure_restores_everything_if_an_adapter_cannot_be_added(
    untrained, make_eraser, picture, monkeypatch
):
    unet = untrained.unet
    untrained.load_erasure(make_eraser(unet, seed=1, concept="baked"))
    untrained.load_erasure(make_eraser(unet, seed=2, concept="adapted"), mode="adapter")
    before, drawn = state(unet), picture(untrained)
    load = type(unet).load_lora_adapter

    def failing(*args, **options):
        load(*args, **options)
        monkeypatch.undo()
        raise MemoryError("no room")

    monkeypatch.setattr(type(unet), "load_lora_adapter", failing)
    with pytest.raises(MemoryError):
        untrained.load_erasure(make_eraser(unet, seed=3), mode="adapter")
    assert list(untrained.list_erasures()) == ["baked", "adapted"]
    assert same(unet, before)
    assert untrained.verify_erasures() == pytest.approx({"baked": 1, "adapted": 1}, abs=1e-3)
    assert abs(picture(untrained) - drawn).max() == 0


def test_load_erasure_restores_adapters_and_weights_if_a_hook_fails(
    untrained, make_eraser, monkeypatch
):
    unet = untrained.unet
    untrained.load_erasure(make_eraser(unet, seed=1, concept="adapted"), mode="adapter")
    before = state(unet)

    def refuse(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(torch.nn.Linear, "register_forward_hook", refuse)
    with pytest.raises(MemoryError):
        untrained.load_erasure(make_eraser(unet, seed=2), mode="hook")
    assert same(unet, before)
    assert untrained.verify_erasures() == pytest.approx({"adapted": 1})


def test_load_erasure_lists_the_modes_for_an_unknown_one(untrained, make_eraser):
    with pytest.raises(ErasureError, match=r"No mode 'peft'.*auto, bake, hook, adapter"):
        untrained.load_erasure(make_eraser(untrained.unet), mode="peft")


def test_adapter_name_takes_names_that_peft_does_not(untrained, make_eraser):
    layers = projections(untrained.unet, ("to_k",))
    path, layer = next(iter(layers.items()))
    factors = {path: (torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1))}
    eraser = EraserAdapter((Lora(factors),), EraserConfig((ErasedConcept("a.b/c d"),), rank=1))
    untrained.load_erasure(eraser, mode="adapter")
    untrained.load_erasure(eraser, name="a_b/c.d", strength=2.0, mode="adapter")
    assert untrained.verify_erasures() == {"a.b/c d": 1, "a_b/c.d": 1}
    assert len(untrained.unet.peft_config) == 2
    untrained.unload_erasures()


def test_adapter_mode_leaves_a_foreign_adapter_with_a_name_like_ours(untrained, make_eraser, style):
    untrained.load_lora_weights(style, adapter_name="erasure_of_time")
    untrained.load_erasure(make_eraser(untrained.unet), mode="adapter")
    assert untrained.get_active_adapters() == ["erasure_of_time", "erasure_car"]


def test_load_erasure_changes_nothing_while_adapters_are_fused(untrained, make_eraser, style):
    untrained.load_erasure(make_eraser(untrained.unet, seed=1, concept="baked"))
    untrained.load_lora_weights(style, adapter_name="S")
    untrained.fuse_lora(adapter_names=["S"])
    before = state(untrained.unet)
    with pytest.raises(ErasureError, match=r"fused into the weights \(S\).*unfuse_lora"):
        untrained.load_erasure(make_eraser(untrained.unet), mode="adapter")
    assert same(untrained.unet, before)
    untrained.unfuse_lora()
    untrained.load_erasure(make_eraser(untrained.unet), mode="adapter")
    assert untrained.verify_erasures() == pytest.approx({"baked": 1, "car": 1}, abs=1e-3)
