import copy

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import (
    PARTS,
    _paths,
    fingerprint,
    linear,
    projections,
    text_layers,
)
from diffusers_erase.models.model import Model
from tests import zoo


def test_text_is_read_by_every_second_attention_and_by_no_other(untrained):
    found = projections(untrained.unet)
    assert len(found) == 7 * len(PARTS)
    assert all(".attn2." in path for path in found)
    width = untrained.unet.config.cross_attention_dim
    assert all(
        layer.in_features == width
        for layer in projections(untrained.unet, ("to_k", "to_v")).values()
    )


def test_the_layers_found_are_the_ones_the_text_goes_through(untrained):
    unet = untrained.unet
    z, t, c = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 24, 128)
    before = unet(z, t, c).sample
    for layer in projections(unet, ("to_v",)).values():
        layer.weight.data.zero_()
    after = unet(z, t, c).sample
    assert not torch.allclose(before, after)
    assert torch.allclose(after, unet(z, t, torch.randn_like(c)).sample, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"encoder_hid_dim": 128, "encoder_hid_dim_type": "text_proj"}, "'text_proj'"),
        ({"only_cross_attention": (True, False)}, r"only_cross_attention=.True, False"),
    ],
)
def test_text_layers_refuses_a_unet_that_reads_the_text_in_another_way(options, reason):
    unet = zoo.unet(128, **options)
    z, t, c = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 24, 128)
    for path, module in unet.named_modules():
        if path.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight.data[:, :64] = 0  # half of the text is erased
    half = c.clone()
    half[..., :64] = 0
    assert not torch.allclose(unet(z, t, c).sample, unet(z, t, half).sample, atol=1e-5)
    with pytest.raises(ErasureError, match=rf"this 'UNet2DConditionModel' with .*{reason}"):
        text_layers(unet)


def test_text_layers_of_a_unet_with_an_image_prompt_are_refused_if_it_projects_the_text_too():
    for unet, refused in ((zoo.unet(128), False), (zoo.unet(128, encoder_hid_dim=128), True)):
        zoo.load_image_prompt(unet)
        assert unet.config.encoder_hid_dim_type == "ip_image_proj"
        if refused:
            with pytest.raises(ErasureError, match="text_proj"):
                text_layers(unet)
        else:
            assert len(text_layers(unet)) == len(projections(unet, ("to_k", "to_v")))


def test_text_layers_refuses_a_unet_whose_attentions_are_of_another_kind():
    unet = zoo.unet(
        128,
        down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    )
    with pytest.raises(ErasureError, match="none of the layers by which its class reads"):
        text_layers(unet)


def test_layers_are_found_inside_an_adapter(untrained, make_eraser, tmp_path):
    path = next(iter(projections(untrained.unet)))
    plain = linear(untrained.unet, path)
    make_eraser(untrained.unet).save_pretrained(tmp_path / "eraser")
    untrained.load_lora_weights(tmp_path / "eraser")
    assert linear(untrained.unet, path).weight is plain.weight


def test_a_missing_layer_is_named(untrained):
    with pytest.raises(ErasureError, match=r"no linear layer 'mid_block.nowhere'"):
        linear(untrained.unet, "mid_block.nowhere")


def test_pipelines_and_denoisers_are_both_taken(untrained):
    assert Model.of(untrained).denoiser is untrained.unet
    assert Model.of(untrained.unet).denoiser is untrained.unet


def test_a_denoiser_without_text_is_refused():
    with pytest.raises(ErasureError, match="UNet2DModel"):
        Model.of(UNet2DModel(8, block_out_channels=(32, 32, 32, 32)))
    with pytest.raises(ErasureError, match="'dict'"):
        _ = Model.of({}).denoiser


def test_the_fingerprint_tells_architectures_apart(untrained):
    other = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    assert fingerprint(untrained.unet) == fingerprint(copy.deepcopy(untrained.unet))
    assert fingerprint(untrained.unet) != fingerprint(other)
    assert fingerprint(untrained.unet)["text_width"] == 128


def test_paths_are_those_of_named_modules(untrained):
    shared = nn.Linear(2, 2)
    odd = nn.ModuleDict({"a": nn.ModuleList([]), "b": nn.ModuleList([shared, nn.ReLU()])})
    odd["c"] = shared
    odd.register_module("none", None)
    for network in (odd, untrained.unet):
        assert [*_paths(network)] == [path for path, _ in network.named_modules()]
