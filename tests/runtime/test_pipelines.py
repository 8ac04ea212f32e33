"""Erasers on the pipelines of Stable Diffusion 1, 2 and XL draw as the added weights do."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    ControlNetModel,
    MotionAdapter,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from diffusers_erase.models.architectures import linear
from diffusers_erase.models.model import Model
from tests import zoo


pytestmark = pytest.mark.filterwarnings("ignore:The eraser")

PHOTO = Image.fromarray(
    np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8), "RGB"
)
MASK = Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 8), "L")


def text_to_image(pipe):
    return pipe, {}


def image_to_image(pipe):
    kind = StableDiffusionXLImg2ImgPipeline if "XL" in type(pipe).__name__ else None
    return (kind or StableDiffusionImg2ImgPipeline).from_pipe(pipe), {
        "image": PHOTO,
        "strength": 1.0,
    }


def inpainting(pipe):
    kind = StableDiffusionXLInpaintPipeline if "XL" in type(pipe).__name__ else None
    return (kind or StableDiffusionInpaintPipeline).from_pipe(pipe), {
        "image": PHOTO,
        "mask_image": MASK,
        "strength": 1.0,
        "height": 32,
        "width": 32,
    }


def controlnet(pipe):
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8)).eval()
    return StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net), {"image": PHOTO}


def animation(pipe):
    motion = MotionAdapter(
        block_out_channels=tuple(pipe.unet.config.block_out_channels),
        motion_layers_per_block=pipe.unet.config.layers_per_block,
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
        use_motion_mid_block=False,
    ).eval()
    return AnimateDiffPipeline.from_pipe(pipe, motion_adapter=motion), {"num_frames": 2}


CASES = [
    ("sd1", text_to_image),
    ("sd1", image_to_image),
    ("sd1", inpainting),
    ("sd1", controlnet),
    ("sd1", animation),
    ("sd2", text_to_image),
    ("sd2", image_to_image),
    ("sdxl", text_to_image),
    ("sdxl", image_to_image),
    ("sdxl", inpainting),
]


def drawn(pipe, options):
    found = pipe(
        "a photo of a red car",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **options,
    )
    return np.asarray(found.frames if hasattr(found, "frames") else found.images)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def made(request, untrained):
    """A pipeline, what it is called with, and the UNet that erasers are made for."""
    family, become = request.param
    start = untrained if family == "sd1" else getattr(zoo, family)(untrained.tokenizer)
    pipe, options = become(start)
    pipe.set_progress_bar_config(disable=True)
    return pipe, options, start.unet


@pytest.mark.parametrize("mode", ["bake", "hook"])
def test_load_erasure_draws_as_added_weights_do_and_unloading_restores_all_bits(
    made, make_eraser, mode
):
    pipe, options, unet = made
    one = make_eraser(unet, seed=1, parts=("to_q", "to_k", "to_v", "to_out.0"), scale=0.3)
    two = make_eraser(unet, seed=2, concept="cat", scale=0.3)
    denoiser = Model.of(pipe).denoiser
    before = {k: v.clone() for k, v in denoiser.state_dict().items()}
    plain = drawn(pipe, options)
    reference = copy.deepcopy(denoiser)
    for eraser, strength in ((one, 1.0), (two, 0.5)):
        for path in eraser.factors:
            linear(reference, path).weight.data += strength * eraser.delta(path)
    pipe.unet = reference
    expected = drawn(pipe, options)
    pipe.unet = denoiser
    pipe.load_erasure([one, two], strength=[1.0, 0.5], mode=mode)
    assert abs(drawn(pipe, options) - expected).max() < 1e-4
    assert abs(expected - plain).max() > 1e-3
    pipe.unload_erasures()
    assert all(torch.equal(v, before[k]) for k, v in denoiser.state_dict().items())
    assert abs(drawn(pipe, options) - plain).max() == 0
