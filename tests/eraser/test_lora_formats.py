"""LoRA files of other programs, theirs to read and ours to read."""

import copy
import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusers_erase import ErasedConcept, EraserAdapter, ErasureError, erase
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.lora_formats import factors_in
from diffusers_erase.eraser.safetensors_io import opened
from diffusers_erase.models.architectures import text_layers
from tests import zoo


def close(one, other, atol=1e-5):
    return one.factors.keys() == other.factors.keys() and all(
        torch.allclose(one.delta(path), other.delta(path), atol=atol) for path in one.factors
    )


@pytest.fixture
def eraser(untrained, make_eraser):
    """With several ranks, and other parts than the two that read the text."""
    thin = make_eraser(untrained.unet, rank=2, scale=0.4)
    thick = make_eraser(untrained.unet, seed=1, rank=3, parts=("to_q", "to_out.0"), scale=0.4)
    return EraserAdapter((Lora({**thin.factors, **thick.factors}),), thin.config)


def comfyui_keys(unet):
    """ComfyUI's rule: a UNet's own names, underscores for dots."""
    return {
        "lora_unet_" + path.replace(".", "_"): path
        for path, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def test_the_file_of_a_unet_has_the_keys_alphas_and_shapes_of_kohya(untrained, eraser, tmp_path):
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    tensors = load_file(folder / Lora.file)
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
    with safe_open(folder / Lora.file, "pt") as file:
        header = file.metadata()
    assert header["ss_network_dim"] == "3"
    assert json.loads(header["erasure"])["concepts"][0]["name"] == "car"


@pytest.mark.parametrize("name", [Lora.file, "erase-car.safetensors"])
def test_its_file_is_loaded_alone_under_any_name(untrained, eraser, picture, tmp_path, name):
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    (folder / Lora.file).rename(tmp_path / name)
    back = EraserAdapter.from_pretrained(tmp_path / name)
    assert close(back, eraser)
    assert back.config == eraser.config
    untrained.load_erasure(tmp_path / name)
    assert untrained.list_erasures()["car"].source == str(tmp_path / name)
    erased = picture(untrained)
    untrained.unload_erasures()
    untrained.load_lora_weights(tmp_path / name)
    assert abs(picture(untrained) - erased).max() < 1e-5


def test_the_file_of_a_transformer_has_the_keys_of_diffusers(untrained, tmp_path):
    pipe = zoo.flux(untrained.tokenizer)
    eraser = erase(pipe, "car", vocabulary=["oak", "cat"], recipe="uce", check=False)
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    with safe_open(folder / Lora.file, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        assert {*file.keys()} == {
            f"transformer.context_embedder.lora_{half}.weight" for half in "AB"
        }
    assert header["transformer.r"] == header["transformer.lora_alpha"] == eraser.config.rank
    assert len(header) == 7


def test_a_folder_that_was_renamed_is_still_known_as_ours(eraser, tmp_path):
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    moved = folder.rename(tmp_path / "other")
    shutil.copyfile(moved / Lora.file, moved / "erase-car.safetensors")
    eraser.save_pretrained(moved, overwrite=True)
    assert not (moved / "erase-car.safetensors").exists()
    save_file({"x": torch.ones(1)}, moved / "somebody's.safetensors")
    with pytest.raises(ErasureError, match="holds something else"):
        eraser.save_pretrained(moved, overwrite=True)


def by_peft(path, A, B, alpha):
    return {f"unet.{path}.lora_A.weight": A, f"unet.{path}.lora_B.weight": B}


def all_by_peft(eraser):
    tensors = {}
    for path, (A, B) in eraser.factors.items():
        tensors |= by_peft(path, A, B, len(A))
    return tensors


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


def test_a_rank_stabilised_lora_is_as_strong_as_peft_makes_it(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet, rank=4)
    said = {"unet.r": 4, "unet.lora_alpha": 4, "unet.use_rslora": True}
    header = {"lora_adapter_metadata": json.dumps(said)}
    save_file(all_by_peft(eraser), tmp_path / "x.safetensors", header)
    back = EraserAdapter.from_checkpoint(tmp_path / "x.safetensors", "car")
    for path in eraser.factors:
        assert torch.allclose(back.delta(path), 2 * eraser.delta(path), atol=1e-5)


def test_alpha_in_the_header_counts(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet, rank=2)
    path, *_ = eraser.factors
    said = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {path: 1}}
    save_file(
        all_by_peft(eraser),
        tmp_path / "x.safetensors",
        {"lora_adapter_metadata": json.dumps(said)},
    )
    back = EraserAdapter.from_checkpoint(tmp_path / "x.safetensors", "car")
    for there in eraser.factors:
        scale = 0.5 if there == path else 3.0
        assert torch.allclose(back.delta(there), scale * eraser.delta(there), atol=1e-5)


PATTERNS = {
    "nothing": {},
    "suffixes": {"to_k": 1, "0.attn2.to_v": 8},
    "the first that matches": {"attn2.to_k": 1, "to_k": 32, "attn2.to_v": 64},
    "regular expressions": {"^down_blocks.*to_k": 1, "to_(k|v)": 8},
    "whole paths": {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": 1},
}


def peft_lora(unet, patterns, **settings):
    """A LoRA that peft made, with other alphas and ranks, and what it adds to every layer."""
    wanted = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=list(wanted),
        init_lora_weights=False,
        alpha_pattern=patterns,
        rank_pattern={"to_q": 2},
        **settings,
    )
    unet.add_adapter(config)
    layers = {p: m for p, m in unet.named_modules() if p.endswith(wanted)}
    return {path: layer.get_delta_weight("default") for path, layer in layers.items()}


@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("by", ["peft", "diffusers"])
@pytest.mark.parametrize("known", [True, False])
def test_alpha_pattern_of_a_lora_saved_by_peft_counts_as_in_peft(
    untrained, tmp_path, patterns, by, known
):
    wearer = copy.deepcopy(untrained.unet)
    changes = peft_lora(wearer, patterns)
    (config,) = wearer.peft_config.values()
    tensors = get_peft_model_state_dict(wearer, adapter_name="default")
    if by == "diffusers":
        untrained.save_lora_weights(
            tmp_path, unet_lora_layers=tensors, unet_lora_adapter_metadata=config.to_dict()
        )
        file = tmp_path / Lora.file
    else:
        file = tmp_path / "adapter_model.safetensors"
        save_file({f"base_model.model.{key}": value for key, value in tensors.items()}, file)
        config.save_pretrained(tmp_path)
    back = EraserAdapter.from_checkpoint(file, "car", base=untrained if known else None)
    assert back.factors.keys() == changes.keys()
    for path, change in changes.items():
        assert torch.allclose(back.delta(path), change, atol=1e-5), path


def test_alpha_pattern_that_would_take_forever_to_match_is_refused(
    make_eraser, untrained, tmp_path
):
    eraser = make_eraser(untrained.unet)
    file = tmp_path / "x.safetensors"
    for patterns in (
        {"(a+)+b": 1},
        {"(": 1},
        {"x" * 300: 1},
        [],
        {f"x{k}": 1 for k in range(50_000)},
    ):
        metadata = {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": patterns or [1]})}
        save_file(all_by_peft(eraser), file, metadata)
        with pytest.raises(ErasureError, match="no settings of a LoRA"):
            EraserAdapter.from_checkpoint(file, "car")


def sgm_names(unet):
    """Attention blocks of a UNet -> their names in SDXL's original code."""
    per_block, names = unet.config.layers_per_block, {"mid_block.attentions.0": "middle_block.1"}
    place = 1  # the first input block is a convolution
    for i, block in enumerate(unet.down_blocks):
        for j in range(per_block):
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{place + j}.1"
        place += per_block + bool(block.downsamplers)
    for k in range(len(unet.up_blocks) * (per_block + 1)):
        i, j = divmod(k, per_block + 1)
        names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{k}.1"
    return names


def test_kohya_file_of_sdxl_with_original_block_names_needs_the_base(
    untrained, make_eraser, tmp_path
):
    pipe = zoo.sdxl(untrained.tokenizer)
    eraser = make_eraser(pipe.unet, parts=("to_q", "to_k", "to_v", "to_out.0"))
    names, tensors = sgm_names(pipe.unet), {}
    for path, (A, B) in eraser.factors.items():
        block = path.partition(".transformer_blocks")[0]
        tensors |= by_kohya(path.replace(block, names[block]), A, B * 2, 1)
    assert "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k.alpha" in tensors
    file = tmp_path / "sdxl.safetensors"
    save_file(tensors, file)
    for base in (pipe, pipe.unet):
        assert close(EraserAdapter.from_checkpoint(file, "car", base=base), eraser)
    with pytest.raises(ErasureError, match="pass the pipeline it was made for as `base`"):
        EraserAdapter.from_checkpoint(file, "car")
    both = by_kohya("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", A + 1, B + 1, 1)
    save_file({**tensors, **both}, file)
    with pytest.raises(ErasureError, match=r"it holds .* weights, of which diffusers reads 2"):
        EraserAdapter.from_checkpoint(file, "car", base=pipe)


@pytest.mark.parametrize(
    ("family", "by"), [("flux", by_peft), ("flux", by_kohya), ("sd3", by_peft)]
)
def test_lora_of_a_transformer_is_read_by_its_pipeline(untrained, tmp_path, family, by):
    pipe = getattr(zoo, family)(untrained.tokenizer)
    layer = pipe.transformer.context_embedder
    A, B = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    name = "txt_in" if by is by_kohya else "context_embedder"
    tensors = {key.replace("unet.", "transformer."): x for key, x in by(name, A, B, 1).items()}
    save_file(tensors, tmp_path / "x.safetensors")
    back = EraserAdapter.from_checkpoint(tmp_path / "x.safetensors", "car", base=pipe)
    scale = 0.5 if by is by_kohya else 1.0
    assert torch.allclose(back.delta("context_embedder"), scale * B @ A, atol=1e-5)


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
    assert back.config.concepts == (ErasedConcept("car", target="truck"),)
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
    whole_pairs = all_by_peft(eraser)
    half = next(iter(whole_pairs))
    refused({k: v for k, v in whole_pairs.items() if k != half}, "lacks one of the two")
    same = {key: unet.state_dict()[key.removeprefix("unet.")].clone()}
    refused(same, "erases nothing", base=untrained)
    kohya = {}
    for path, (A, B) in eraser.factors.items():
        kohya |= by_kohya(path, A, B, 2)
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 4)}
    refused({**kohya, **text}, "'lora_te_text_model.*no LoRA weight of a denoiser")
    words = {"text_encoder.text_model.x.lora_A.weight": torch.ones(1, 4)}
    refused({**kohya, **words}, "'text_encoder.text_model.*no LoRA weight of a denoiser")
    refused(
        {**kohya, "lora_unet_x.alpha": torch.ones(())},
        r"cannot read .* as a LoRA: .*lora_unet_x\.alpha",
    )
    dora = {"lora_unet_x.dora_scale": torch.ones(4)}
    refused({**kohya, **dora}, "'lora_unet_x.dora_scale', which is no LoRA weight")
    conv = by_kohya("conv_in", torch.ones(1, 4, 3, 3), torch.ones(32, 1, 1, 1), 1)
    refused({**kohya, **conv}, "'unet.conv_in.lora_A.weight', which is no LoRA weight")
    foreign = by_kohya("down_blocks.9.attn2.to_k", torch.ones(1, 4), torch.ones(3, 1), 1)
    refused({**kohya, **foreign}, "missing", base=untrained)
    with pytest.raises(ErasureError, match="no file"):
        EraserAdapter.from_checkpoint(tmp_path / "nothing", "car")


def test_kohyas_names_are_guessed_as_diffusers_names_its_blocks(untrained, make_eraser, tmp_path):
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    folder = make_eraser(untrained.unet, parts=parts).save_pretrained(tmp_path / "car")
    found = factors_in(opened(folder / Lora.file))
    assert found.keys() == make_eraser(untrained.unet, parts=parts).factors.keys()
