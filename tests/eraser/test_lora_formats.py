"""LoRA files of other programs, theirs to read and ours to read."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusers_erase import EraserAdapter, ErasureError, erase
from diffusers_erase.eraser.files import WEIGHTS_NAME
from diffusers_erase.eraser.lora_formats import factors_in
from diffusers_erase.eraser.safetensors_io import opened
from diffusers_erase.models.architectures import text_layers


def close(one, other, atol=1e-5):
    return one.factors.keys() == other.factors.keys() and all(
        torch.allclose(one.delta(path), other.delta(path), atol=atol) for path in one.factors
    )


@pytest.fixture
def eraser(untrained, make_eraser):
    """With several ranks, and other parts than the two that read the text."""
    thin = make_eraser(untrained.unet, rank=2, scale=0.4)
    thick = make_eraser(untrained.unet, seed=1, rank=3, parts=("to_q", "to_out.0"), scale=0.4)
    return EraserAdapter({**thin.factors, **thick.factors}, thin.config)


def comfyui_keys(unet):
    """ComfyUI's rule: a UNet's own names, underscores for dots."""
    return {
        "lora_unet_" + path.replace(".", "_"): path
        for path, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def test_the_second_file_has_the_keys_alphas_and_shapes_of_kohya(untrained, eraser, tmp_path):
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    tensors = load_file(folder / "erase-car.safetensors")
    known = comfyui_keys(untrained.unet)
    seen = set()
    for key in tensors:
        name, _half = re.fullmatch(r"(.+?)\.(alpha|lora_(?:up|down)\.weight)", key).groups()
        path = known[name]
        down, up = (tensors[f"{name}.lora_{h}.weight"] for h in ("down", "up"))
        assert len(down) == up.shape[1] == tensors[f"{name}.alpha"] == 3
        assert torch.allclose(up @ down, eraser.delta(path), atol=1e-6)
        seen.add(path)
    assert seen == eraser.factors.keys()
    with safe_open(folder / "erase-car.safetensors", "pt") as file:
        header = file.metadata()
    assert header["ss_network_dim"] == "3"
    assert json.loads(header["erasure"])["concept"] == "car"


def test_plain_diffusers_reads_the_second_file_too(untrained, eraser, picture, tmp_path):
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    untrained.load_erasure(eraser)
    erased = picture(untrained)
    untrained.unload_erasures()
    untrained.load_lora_weights(folder / "erase-car.safetensors")
    assert abs(picture(untrained) - erased).max() < 1e-5


@pytest.mark.parametrize("name", [WEIGHTS_NAME, "erase-car.safetensors"])
def test_either_file_is_loaded_alone(untrained, eraser, tmp_path, name):
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    back = EraserAdapter.from_pretrained(folder / name)
    assert close(back, eraser)
    assert back.config == eraser.config
    untrained.load_erasure(folder / name)
    assert untrained.list_erasures()["car"].source == str(folder / name)


def test_a_folder_that_was_renamed_is_still_known_as_ours(eraser, tmp_path):
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    moved = folder.rename(tmp_path / "other")
    eraser.save_pretrained(moved, overwrite=True)
    assert (moved / "other.safetensors").exists()
    assert not (moved / "erase-car.safetensors").exists()
    save_file({"x": torch.ones(1)}, moved / "somebody's.safetensors")
    with pytest.raises(ErasureError, match="holds something else"):
        eraser.save_pretrained(moved, overwrite=True)


def by_peft(path, A, B, alpha):
    return {f"unet.{path}.lora_A.weight": A, f"unet.{path}.lora_B.weight": B}


def by_kohya(path, A, B, alpha):
    name = f"lora_unet_{path.replace('.', '_')}"
    halves = {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B}
    return {**halves, f"{name}.alpha": torch.tensor(float(alpha))}


def by_old_diffusers(path, A, B, alpha):
    name = re.sub(r"\.(to_\w+)(\.0)?$", r".processor.\1_lora", path)
    return {f"unet.{name}.down.weight": A, f"unet.{name}.up.weight": B}


@pytest.mark.parametrize("layout", [by_peft, by_kohya, by_old_diffusers])
@pytest.mark.parametrize("known", [True, False])
def test_loras_of_others_become_erasers(untrained, eraser, tmp_path, layout, known):
    alpha, tensors = 1.0, {}
    for path, (A, B) in eraser.factors.items():
        factor = len(A) / alpha if layout is by_kohya else 1.0
        tensors |= layout(path, A.clone(), B * factor, alpha)
    header = {}
    save_file(tensors, tmp_path / "somebody.safetensors", header)
    base = untrained if known else None
    back = EraserAdapter.from_checkpoint(tmp_path / "somebody.safetensors", "car", base=base)
    assert close(back, eraser)
    assert back.config.parameters["kept_energy"] == pytest.approx(1)
    untrained.load_erasure(back)
    with pytest.raises(ErasureError, match=r"no eraser.*from_checkpoint"):
        EraserAdapter.from_pretrained(tmp_path / "somebody.safetensors")


@pytest.mark.parametrize("name", ["pytorch_lora_weights", "text_map"])
def test_no_name_of_a_folder_overwrites_a_file_in_it(untrained, tmp_path, name):
    eraser = erase(untrained, "car", vocabulary=["oak", "cat"], recipe="uce")
    folder = eraser.save_pretrained(tmp_path / name)
    back = EraserAdapter.from_pretrained(folder)
    assert close(back, eraser)
    assert torch.allclose(back.text_map.change, eraser.text_map.change, atol=1e-6)
    assert (folder / f"{name}-kohya.safetensors").is_file()


def test_a_rank_stabilised_lora_is_as_strong_as_peft_makes_it(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet, rank=4)
    folder = eraser.save_pretrained(tmp_path / "car")
    said = {"unet.r": 4, "unet.lora_alpha": 4, "unet.use_rslora": True}
    header = {"lora_adapter_metadata": json.dumps(said)}
    save_file(load_file(folder / WEIGHTS_NAME), tmp_path / "x.safetensors", header)
    back = EraserAdapter.from_checkpoint(tmp_path / "x.safetensors", "car")
    for path in eraser.factors:
        assert torch.allclose(back.delta(path), 2 * eraser.delta(path), atol=1e-5)


def test_alpha_in_the_header_counts(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet, rank=2)
    folder = eraser.save_pretrained(tmp_path / "car")
    path, *_ = eraser.factors
    said = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {path: 1}}
    save_file(
        load_file(folder / WEIGHTS_NAME),
        tmp_path / "x.safetensors",
        {"lora_adapter_metadata": json.dumps(said)},
    )
    back = EraserAdapter.from_checkpoint(tmp_path / "x.safetensors", "car")
    for there in eraser.factors:
        scale = 0.5 if there == path else 3.0
        assert torch.allclose(back.delta(there), scale * eraser.delta(there), atol=1e-5)


def rewritten(unet, eraser, dtype=torch.float32):
    layers = text_layers(unet)
    return {
        f"unet.{path}.weight": (layers[path].weight.detach() + eraser.delta(path)).to(dtype)
        for path in layers
    }


def test_rewritten_weights_are_the_lora_they_differ_by(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet, rank=2)
    save_file(rewritten(untrained.unet, eraser), tmp_path / "esd.safetensors")
    back = EraserAdapter.from_checkpoint(
        tmp_path / "esd.safetensors", "car", base=untrained, rank=2, target="truck"
    )
    assert close(back, eraser)
    assert back.config.rank == 2
    assert back.config.parameters["kept_energy"] == pytest.approx(1, abs=1e-4)
    assert (back.config.concept, back.config.target) == ("car", "truck")
    again = EraserAdapter.from_pretrained(back.save_pretrained(tmp_path / "car"))
    assert close(again, eraser)


def test_a_lower_rank_says_what_it_keeps(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet, rank=4)
    save_file(rewritten(untrained.unet, eraser), tmp_path / "esd.safetensors")
    back = EraserAdapter.from_checkpoint(
        tmp_path / "esd.safetensors", "car", base=untrained, rank=1
    )
    energies = [torch.linalg.svdvals(eraser.delta(path)).square() for path in eraser.factors]
    expected = sum(float(e[0]) for e in energies) / sum(float(e.sum()) for e in energies)
    assert back.config.parameters["kept_energy"] == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_imported_is_said(untrained, make_eraser, tmp_path):
    file = tmp_path / "x.safetensors"
    unet = untrained.unet
    eraser = make_eraser(unet)

    def refused(tensors, message, **options):
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
        with pytest.raises(ErasureError, match=message):
            EraserAdapter.from_checkpoint(file, "car", **options)

    whole = rewritten(unet, eraser)
    refused(whole, "pass the pipeline they were made from")
    key, *_ = whole
    refused({**whole, "unet.alien.weight": torch.ones(2)}, "'unet.alien.weight'", base=untrained)
    refused({key: torch.ones(2, 3)}, r"\(2 x 3\), which is no weight", base=untrained)
    convolution = {"conv_in.weight": unet.conv_in.weight.detach() + 1}
    refused({**whole, **convolution}, "1 other tensors, such as 'conv_in.weight'", base=untrained)
    refused({key: torch.full_like(whole[key], float("nan"))}, "not finite", base=untrained)
    idle = {path: (A, 0 * B) for path, (A, B) in eraser.factors.items()}
    refused(
        {k: v for path, pair in idle.items() for k, v in by_peft(path, *pair, 2).items()},
        "it erases nothing",
    )
    same = {key: unet.state_dict()[key.removeprefix("unet.")].clone()}
    refused(same, "erases nothing", base=untrained)
    kohya = {}
    for path, (A, B) in eraser.factors.items():
        kohya |= by_kohya(path, A, B, 2)
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 4)}
    refused({**kohya, **text}, "'lora_te_text_model.*no LoRA weight of a denoiser")
    words = {"text_encoder.text_model.x.lora_A.weight": torch.ones(1, 4)}
    refused({**kohya, **words}, "'text_encoder.text_model.*no LoRA weight of a denoiser")
    refused({**kohya, "lora_unet_x.alpha": torch.ones(())}, "alpha of 'x', and no LoRA there")
    conv = by_kohya("conv_in", torch.ones(1, 4, 3, 3), torch.ones(32, 1, 1, 1), 1)
    refused({**kohya, **conv}, "which is a convolution")
    foreign = by_kohya("down_blocks.9.attn2.to_k", torch.ones(1, 4), torch.ones(3, 1), 1)
    refused({**kohya, **foreign}, "missing", base=untrained)
    with pytest.raises(ErasureError, match="no file"):
        EraserAdapter.from_checkpoint(tmp_path / "nothing", "car")


def test_kohyas_names_are_guessed_as_diffusers_names_its_blocks(untrained, make_eraser, tmp_path):
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    folder = make_eraser(untrained.unet, parts=parts).save_pretrained(tmp_path / "car")
    found = factors_in(opened(folder / "car.safetensors"))
    assert found.keys() == make_eraser(untrained.unet, parts=parts).factors.keys()
