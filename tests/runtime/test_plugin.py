import copy
import math
import random

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from diffusers_erase import ErasureError, erase, list_erasures, load_erasure
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.evaluation.graph import require_no_erasers
from diffusers_erase.making.request import require_erasable
from diffusers_erase.models.architectures import SELF_PARTS, projections
from diffusers_erase.models.model import Model
from diffusers_erase.runtime import plugin
from diffusers_erase.runtime.plugin import erasure_names
from tests import zoo


# random erasers interfere, and loading warns of it
pytestmark = pytest.mark.filterwarnings("ignore:The eraser")


def weights(unet):
    return {k: v.clone() for k, v in unet.state_dict().items()}


def equal(unet, before):
    after = unet.state_dict()
    return after.keys() == before.keys() and all(
        torch.equal(v, before[k]) for k, v in after.items()
    )


def exact(unet, *erasers):
    """A copy of the denoiser with s B A added by hand, in float64."""
    reference = copy.deepcopy(unet)
    for eraser, strength in erasers:
        for path, (A, B) in eraser.factors.items():
            weight = reference.get_submodule(path).weight.data
            weight.copy_((weight.double() + strength * B.double() @ A.double()).float())
    return reference


def close(unet, reference):
    return all(
        torch.allclose(a, b, atol=2e-6)
        for a, b in zip(unet.parameters(), reference.parameters(), strict=True)
    )


def test_load_erasure_changes_the_picture_and_unload_erasure_restores_it_bit_for_bit(
    untrained, make_eraser, picture
):
    before, base = weights(untrained.unet), picture(untrained)
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.5), name="car")
    assert abs(picture(untrained) - base).max() > 1e-3
    untrained.unload_erasure("car")
    assert equal(untrained.unet, before)
    assert abs(picture(untrained) - base).max() == 0


@pytest.mark.parametrize("seed", range(4))
def test_after_any_sequence_the_weights_are_the_exact_sum_and_in_the_end_the_originals(
    untrained, make_eraser, seed
):
    rng = random.Random(seed)
    unet, before = untrained.unet, weights(untrained.unet)
    parts = (("to_k", "to_v"), ("to_q", "to_out.0"), ("to_v", *SELF_PARTS))
    erasers = {f"e{i}": make_eraser(unet, seed=i, parts=p) for i, p in enumerate(parts)}
    base, loaded = copy.deepcopy(unet), {}
    for _ in range(12):
        name, strength = rng.choice(sorted(erasers)), rng.choice([0.0, 0.5, 1.0, -1.0, 1.7])
        if name not in loaded:
            untrained.load_erasure(erasers[name], name, strength)
            loaded[name] = strength
        elif rng.random() < 0.5:
            untrained.set_erasure_strength(name, strength)
            loaded[name] = strength
        else:
            untrained.unload_erasure(name)
            del loaded[name]
        assert {k: v.strength for k, v in list_erasures(untrained).items()} == loaded
        assert close(unet, exact(base, *((erasers[k], s) for k, s in loaded.items())))
    untrained.unload_erasures()
    assert equal(unet, before)
    assert list_erasures(untrained) == {}


def test_load_erasure_does_not_depend_on_the_order(untrained, make_eraser):
    one, two = make_eraser(untrained.unet, seed=1), make_eraser(untrained.unet, seed=2)
    other = copy.deepcopy(untrained.unet)
    for unet, order in ((untrained.unet, "ab"), (other, "ba")):
        for name in order:
            load_erasure(unet, {"a": one, "b": two}[name], name)
    assert equal(untrained.unet, weights(other))


def test_set_erasure_strength_zero_is_the_base_bit_for_bit(untrained, make_eraser):
    before = weights(untrained.unet)
    untrained.load_erasure(make_eraser(untrained.unet), strength=0.0)
    assert equal(untrained.unet, before)
    untrained.set_erasure_strength("car", 1.0)
    assert not equal(untrained.unet, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unload_erasures_restores_half_precision_bit_for_bit(untrained, make_eraser, dtype):
    untrained.unet.to(dtype)
    before = weights(untrained.unet)
    untrained.load_erasure(make_eraser(untrained.unet))
    assert not equal(untrained.unet, before)
    untrained.unload_erasures()
    assert equal(untrained.unet, before)


def test_unload_erasures_after_a_change_of_precision_restores_the_weights(untrained, make_eraser):
    wanted = {k: v.bfloat16() for k, v in weights(untrained.unet).items()}
    untrained.load_erasure(make_eraser(untrained.unet))
    untrained.unet.to(torch.bfloat16)
    untrained.unload_erasures()
    assert equal(untrained.unet, wanted)


def test_unload_erasures_keeps_changes_that_others_made(untrained, make_eraser):
    unet = untrained.unet
    style, eraser = make_eraser(unet, seed=5, concept="style"), make_eraser(unet, seed=6)
    wanted = exact(unet, (style, 1.0))
    untrained.load_erasure(eraser)
    layers = projections(unet)
    for path in style.factors:
        layers[path].weight.data.add_(style.delta(path))
    untrained.set_erasure_strength("car", 0.3)
    untrained.unload_erasures()
    assert close(unet, wanted)


@pytest.mark.parametrize("mode", ["bake", "hook"])
def test_erasers_stay_on_whatever_happens_to_other_adapters(
    untrained, make_eraser, picture, tmp_path, mode
):
    """The calls that silently switch ordinary adapters off, one after the other."""
    pipe, unet = untrained, untrained.unet
    eraser = make_eraser(unet, seed=1, scale=0.3)
    style = make_eraser(unet, seed=2, scale=0.3, concept="style")
    folder = style.save_pretrained(tmp_path / "style")

    def drawn_with(*erasers):
        mine, pipe.unet = pipe.unet, exact(clean, *erasers)
        try:
            return picture(pipe)
        finally:
            pipe.unet = mine

    clean = copy.deepcopy(unet)
    erased, half, both = (drawn_with((eraser, 1), (style, s)) for s in (0, 0.5, 1))
    assert abs(erased - both).max() > 1e-3
    pipe.load_erasure(eraser, mode=mode)
    pipe.load_lora_weights(folder, adapter_name="S")
    assert abs(picture(pipe) - both).max() < 1e-4
    pipe.set_adapters("S", 0.5)
    assert abs(picture(pipe) - half).max() < 1e-4
    pipe.set_adapters("S")
    assert abs(picture(pipe, cross_attention_kwargs={"scale": 0.5}) - half).max() < 1e-4
    pipe.disable_lora()
    assert abs(picture(pipe) - erased).max() < 1e-4
    pipe.enable_lora()
    pipe.set_adapters("S")
    pipe.fuse_lora(adapter_names=["S"])
    assert abs(picture(pipe) - both).max() < 1e-4
    pipe.unfuse_lora()
    pipe.delete_adapters("S")
    assert abs(picture(pipe) - erased).max() < 1e-4
    pipe.unload_lora_weights()
    assert abs(picture(pipe) - erased).max() < 1e-4
    pipe.unload_erasures()
    assert close(unet, clean)


def test_pipelines_that_share_the_denoiser_share_its_erasures(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))
    other = StableDiffusionImg2ImgPipeline.from_pipe(untrained)
    assert list(other.list_erasures()) == ["car"]
    other.unload_erasures()
    assert untrained.list_erasures() == {}


def test_erasures_of_a_copied_denoiser_are_its_own(untrained, make_eraser):
    before = weights(untrained.unet)
    load_erasure(untrained, make_eraser(untrained.unet))
    twin = copy.deepcopy(untrained.unet)
    untrained.unload_erasures()
    assert equal(untrained.unet, before)
    assert list(list_erasures(twin)) == ["car"]
    assert not equal(twin, before)


def test_erasures_disabled_ends_with_its_block_even_if_that_fails(untrained, make_eraser):
    before = weights(untrained.unet)
    untrained.load_erasure(make_eraser(untrained.unet), strength=0.7)
    erased = weights(untrained.unet)

    def fail_inside():
        with untrained.erasures_disabled():
            assert equal(untrained.unet, before)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert equal(untrained.unet, erased)
    assert untrained.list_erasures()["car"].strength == 0.7


def test_erasure_names_are_known_without_encoding_or_hashing(untrained, make_eraser, monkeypatch):
    assert erasure_names(untrained) == ()
    untrained.load_erasure([make_eraser(untrained.unet, seed=k) for k in (1, 2)], ["b", "a"])

    def fail(*_, **__):
        raise AssertionError("computed")

    monkeypatch.setattr(untrained, "encode_prompt", fail)
    monkeypatch.setattr(plugin, "digest", fail)
    assert erasure_names(untrained) == ("b", "a")
    with pytest.raises(ErasureError, match=r"erasures loaded \(b, a\)"):
        require_erasable(Model.of(untrained))
    with pytest.raises(ErasureError, match="has erasers loaded"):
        require_no_erasers(untrained)
    with untrained.erasures_disabled():
        assert erasure_names(untrained) == ()
    untrained.unet = None
    assert erasure_names(untrained) == ()


@pytest.mark.parametrize("mode", ["bake", "hook", "adapter"])
@pytest.mark.filterwarnings("ignore:.*an ordinary adapter is switched off")
def test_erasures_are_back_after_projections_were_fused_inside_erasures_disabled(
    untrained, make_eraser, picture, mode
):
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.4), mode=mode)
    erased = picture(untrained)
    with pytest.raises(ErasureError, match="unfuse_qkv_projections"), untrained.erasures_disabled():
        untrained.fuse_qkv_projections()
    assert list(untrained.list_erasures()) == ["car"]
    assert untrained.verify_erasures()["car"] == pytest.approx(0, abs=1e-4)  # copies of the base
    untrained.unfuse_qkv_projections()
    assert untrained.verify_erasures()["car"] == pytest.approx(1, abs=1e-4)
    assert abs(picture(untrained) - erased).max() < 1e-6


def test_erasures_disabled_does_not_replace_an_error_inside_its_block(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))

    def fail_inside():
        with untrained.erasures_disabled():
            untrained.fuse_qkv_projections()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    untrained.unfuse_qkv_projections()
    assert untrained.verify_erasures()["car"] == pytest.approx(1, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*an ordinary adapter is switched off")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_erasures_that_cannot_come_back_after_erasures_disabled_stay_listed_until_they_can(
    untrained, make_eraser, tmp_path
):
    style = make_eraser(untrained.unet, seed=9, concept="style").save_pretrained(tmp_path / "style")
    untrained.load_erasure(make_eraser(untrained.unet), mode="adapter")
    untrained.load_erasure(make_eraser(untrained.unet, seed=1), "two")

    def fuse_inside():
        with untrained.erasures_disabled():
            untrained.load_lora_weights(style, adapter_name="S")
            untrained.fuse_lora(adapter_names=["S"])

    with pytest.raises(
        ErasureError, match=r"'car', 'two' do not act.*fused into the weights \(S\)"
    ):
        fuse_inside()
    assert list(untrained.list_erasures()) == ["car", "two"]
    assert untrained.verify_erasures() == {"car": 0, "two": 0}
    untrained.unfuse_lora()
    untrained.set_erasure_strength("car", 1.0)
    assert untrained.verify_erasures() == pytest.approx({"car": 1, "two": 1}, abs=1e-3)


def test_erasures_disabled_lets_copies_be_a_base_that_erasers_load_on(untrained, make_eraser):
    eraser, before = make_eraser(untrained.unet), weights(untrained.unet)
    untrained.load_erasure(eraser)
    with untrained.erasures_disabled():
        twin = copy.deepcopy(untrained.unet)
    assert equal(twin, before)
    load_erasure(twin, eraser)
    assert list(list_erasures(twin)) == ["car"]


def test_erasure_names_are_unique_and_errors_list_the_known(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))
    with pytest.raises(ErasureError, match="'car' is loaded already"):
        untrained.load_erasure(make_eraser(untrained.unet, seed=3))
    with pytest.raises(ErasureError, match=r"No erasure named 'cat' is loaded. Loaded: 'car'"):
        untrained.unload_erasure("cat")
    for strength in (float("nan"), float("inf"), -1e300):
        with pytest.raises(ErasureError, match="a finite number of at most 1e"):
            untrained.set_erasure_strength("car", strength)
    assert untrained.list_erasures()["car"].strength == 1.0


def test_load_erasure_refuses_another_architecture_and_changes_nothing(untrained, make_eraser):
    before = weights(untrained.unet)
    eraser = make_eraser(untrained.unet)
    wide = {path: (torch.ones(2, 768), B) for path, (_, B) in eraser.factors.items()}
    deep = {f"down_blocks.9.{path}": pair for path, pair in eraser.factors.items()}
    last = {**eraser.factors, "nowhere.attn2.to_k": (torch.ones(1, 1), torch.ones(1, 1))}
    for factors in (wide, deep, last):
        with pytest.raises(
            ErasureError, match=r"made for a UNet2DConditionModel .*the pipeline has"
        ):
            untrained.load_erasure(EraserAdapter((Lora(factors),), eraser.config))
        assert equal(untrained.unet, before)
        assert untrained.list_erasures() == {}


def test_load_erasure_refuses_a_text_map_where_the_text_is_projected_first(untrained, make_eraser):
    eraser = erase(untrained, "car", vocabulary=["oak", "cat"], recipe="uce", check=False)
    untrained.unet = zoo.unet(128, encoder_hid_dim=128, encoder_hid_dim_type="text_proj")
    before = weights(untrained.unet)
    for one in (eraser, eraser.portable):
        with pytest.raises(ErasureError, match="encoder_hid_dim_type='text_proj'"):
            untrained.load_erasure(one)
    assert equal(untrained.unet, before)
    trained = make_eraser(untrained.unet)  # changes what reads the projection: it acts
    untrained.load_erasure(trained)
    assert untrained.verify_erasures() == pytest.approx({"car": 1}, abs=1e-4)
    assert untrained.list_erasures()["car"].interference == {}


def test_load_erasure_refuses_weights_that_cannot_be_rewritten(untrained, make_eraser):
    eraser = make_eraser(untrained.unet)
    next(iter(projections(untrained.unet, ("to_v",)).values())).to("meta")
    before = {k: v.clone() for k, v in untrained.unet.state_dict().items() if not v.is_meta}
    with pytest.raises(ErasureError, match=r"cannot be rewritten.*mode=.hook"):
        untrained.load_erasure(eraser, mode="bake")
    with pytest.raises(ErasureError, match="No mode 'melt'"):
        untrained.load_erasure(eraser, mode="melt")
    assert all(torch.equal(untrained.unet.state_dict()[k], v) for k, v in before.items())


def test_load_erasure_refuses_fused_projections_until_they_are_unfused(
    untrained, make_eraser, picture
):
    eraser = make_eraser(untrained.unet, scale=0.3)
    untrained.fuse_qkv_projections()
    with pytest.raises(ErasureError, match="unfuse_qkv_projections"):
        untrained.load_erasure(eraser)
    untrained.unfuse_qkv_projections()
    untrained.load_erasure(eraser)
    erased = picture(untrained)
    untrained.fuse_qkv_projections()
    assert abs(picture(untrained) - erased).max() < 1e-4


def test_load_erasure_is_refused_inside_erasures_disabled(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))
    with untrained.erasures_disabled(), pytest.raises(ErasureError, match="after the `with` block"):
        untrained.load_erasure(make_eraser(untrained.unet, seed=1), name="second")
    assert list(untrained.list_erasures()) == ["car"]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_and_back_is_no_foreign_change(untrained, make_eraser, half):
    wanted = {k: v.to(half).float() for k, v in weights(untrained.unet).items()}
    untrained.load_erasure(make_eraser(untrained.unet))
    untrained.unet.to(half).float()
    untrained.unload_erasures()
    assert equal(untrained.unet, wanted)


def test_load_erasure_loads_all_erasers_of_a_list_or_none(untrained, make_eraser):
    unet, before = untrained.unet, weights(untrained.unet)
    one, two = (make_eraser(unet, seed=k, concept=name) for k, name in enumerate(("car", "cat")))
    assert untrained.load_erasure([one, two], strength=[1.0, 0.5]) == ["car", "cat"]
    assert close(unet, exact_from(before, unet, (one, 1.0), (two, 0.5)))
    untrained.set_erasure_strength(["car", "cat"], [0.2, 0.0])
    assert [x.strength for x in untrained.list_erasures().values()] == [0.2, 0.0]
    untrained.set_erasure_strength(["car", "cat"], 1.0)
    assert close(unet, exact_from(before, unet, (one, 1.0), (two, 1.0)))
    untrained.unload_erasures()
    narrow = EraserAdapter((Lora({"nowhere": (torch.ones(1, 4), torch.ones(4, 1))}),), two.config)
    for several, options in (
        ([one, narrow], {}),
        ([one, one], {}),
        ([one, two], {"name": ["a"]}),
        ([one, two], {"name": "a"}),
        ([one, two], {"strength": [1.0, float("inf")]}),
        ([one, "there/is no such"], {}),
    ):
        with pytest.raises(ErasureError):
            untrained.load_erasure(several, **options)
        assert equal(unet, before)
        assert not untrained.list_erasures()


def exact_from(before, unet, *erasers):
    """As `exact`, from the weights as they were."""
    clean = copy.deepcopy(unet)
    clean.load_state_dict(before)
    return exact(clean, *erasers)


def test_verify_erasures_measures_the_weights_as_they_are(untrained, make_eraser):
    unet = untrained.unet
    base = {k: v.clone() for k, v in unet.state_dict().items()}
    several = [make_eraser(unet, seed=k, concept=str(k)) for k in range(3)]
    untrained.load_erasure(several, strength=[1.0, 0.4, 0.0])
    assert untrained.verify_erasures() == pytest.approx({"0": 1, "1": 1, "2": 1}, abs=1e-4)
    style = make_eraser(unet, seed=9)
    for path, layer in projections(unet, ("to_k", "to_v")).items():
        layer.weight.data += style.delta(path)  # as a fused style would
    assert untrained.verify_erasures() == pytest.approx({"0": 1, "1": 1, "2": 1}, abs=0.2)
    unet.load_state_dict(base)
    assert untrained.verify_erasures() == pytest.approx({"0": 0, "1": 0, "2": 1}, abs=1e-4)
    with pytest.raises(ErasureError, match=r"not known to act in full: '0' \(-?0%\), '1'"):
        untrained.export_erased("never")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_verify_erasures_is_one_after_rounding_to_half_precision(untrained, make_eraser, half):
    untrained.load_erasure(make_eraser(untrained.unet))
    untrained.unet.to(half)
    assert untrained.verify_erasures()["car"] == pytest.approx(1, abs=0.01)


def test_export_erased_saves_a_plain_model_with_the_erasure_in_its_weights(
    untrained, make_eraser, picture, tmp_path
):
    with pytest.raises(ErasureError, match="nothing to export"):
        untrained.export_erased(tmp_path / "base")
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.3))
    erased = picture(untrained)
    folder = untrained.export_erased(tmp_path / "erased")
    plain = StableDiffusionPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    assert not plain.list_erasures()
    assert abs(picture(plain) - erased).max() < 1e-5
    with pytest.raises(ErasureError, match="exists already"):
        untrained.export_erased(folder)
    assert untrained.export_erased(folder, overwrite=True) == folder
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ErasureError, match="holds something else"):
        untrained.export_erased(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_export_erased_without_the_originals_wants_the_weights_as_they_were_written(
    untrained, make_eraser, tmp_path
):
    untrained.load_erasure(make_eraser(untrained.unet), keep_base=False)
    assert untrained.verify_erasures() == {"car": 1.0}
    assert untrained.export_erased(tmp_path / "erased").is_dir()
    next(iter(projections(untrained.unet, ("to_v",)).values())).weight.data.zero_()
    assert math.isnan(untrained.verify_erasures()["car"])
    with pytest.raises(
        ErasureError, match=r"in full: 'car' \(unknown\).*without `keep_base=False`"
    ):
        untrained.export_erased(tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_export_erased_refuses_ordinary_adapters(untrained, make_eraser, tmp_path):
    style = make_eraser(untrained.unet, seed=2, concept="style").save_pretrained(tmp_path / "style")
    untrained.load_erasure(make_eraser(untrained.unet))
    untrained.load_lora_weights(style, adapter_name="S")
    with pytest.raises(ErasureError, match="Ordinary adapters are loaded"):
        untrained.export_erased(tmp_path / "erased")
    untrained.unload_lora_weights()
    assert untrained.export_erased(tmp_path / "erased").is_dir()


def test_load_erasure_refuses_unknown_options_and_suggests_near_ones(
    untrained, make_eraser, tmp_path
):
    folder = make_eraser(untrained.unet).save_pretrained(tmp_path / "car")
    with pytest.raises(TypeError, match="'strengths'; did you mean 'strength'"):
        untrained.load_erasure(folder, strengths=0.5)
    with pytest.raises(TypeError, match="'pickle'"):
        EraserAdapter.from_pretrained(folder, pickle=True)
    assert untrained.list_erasures() == {}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (None, {}, r"A source of an eraser is a folder.* or a list of these; got None"),
        ([None], {}, r"A source of an eraser is a folder.*; got None"),
        (5, {}, "A source of an eraser is a folder.*; got 5"),
        ("user/name", {"revision": 5}, "`revision` is a branch, a tag or a commit.*; got 5"),
        ("user/name", {"subfolder": 5}, "`subfolder` is a folder, a string; got 5"),
        ("user/name", {"strength": "1"}, "`strength` must be a finite number.*; got '1'"),
        (["user/name"], {"strength": ["1"]}, "`strength` must be a finite number.*; got '1'"),
        ("user/name", {"strength": None}, "`strength` must be a finite number.*; got None"),
        ("user/name", {"name": 5}, "The `name` of an eraser is a string; got 5"),
        ("user/name", {"keep_null": True}, '`keep_null` is "exact" or None; got True'),
    ],
)
def test_load_erasure_refuses_arguments_of_other_types_before_anything_is_changed(
    untrained, source, options, message, hub
):
    before = weights(untrained.unet)
    with pytest.raises(ErasureError, match=message):
        untrained.load_erasure(source, **options)
    assert equal(untrained.unet, before)
    assert not hub.log
    assert untrained.list_erasures() == {}


def test_set_erasure_strength_refuses_a_string(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))
    with pytest.raises(ErasureError, match=r"a finite number of at most .*; got '0.5'"):
        untrained.set_erasure_strength("car", "0.5")
    assert untrained.list_erasures()["car"].strength == 1
