import pytest
import torch

from diffusers_erase import ErasureError, load_erasure
from diffusers_erase.attacks.image_editing import DDIMInversion, ImageToImage, image_to_image
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase
from tests import zoo


@pytest.mark.parametrize(
    "attack", [ImageToImage((0.5, 1.0)), DDIMInversion(), DDIMInversion(2, text=False)]
)
def test_image_attack_on_an_eraser_of_strength_zero_equals_its_control(
    sampler, untrained, make_eraser, cases, attack
):
    load_erasure(untrained, make_eraser(untrained.unet), strength=0.0)
    curve = run_attack(attack, sampler, cases).curve
    controls = {key for key in curve if key.endswith(", no eraser")}
    assert len(curve) == 2 * len(controls) > 0
    assert all(curve[key] == curve[key.removesuffix(", no eraser")] for key in controls)


def test_image_to_image_does_not_count_its_controls(sampler, untrained, make_eraser, cases):
    load_erasure(untrained, make_eraser(untrained.unet, scale=2.0))
    found = run_attack(ImageToImage((0.5, 1.0)), sampler, cases)
    own = [share for key, share in found.curve.items() if not key.endswith(", no eraser")]
    assert found.per_image.n == 2 * len(cases)
    assert found.per_image.hits == round(len(cases) * sum(own))


def test_image_to_image_pipeline_has_the_same_parts_in_the_same_precision(untrained):
    untrained.unet.to(torch.bfloat16)  # the fixture's own; its other parts are shared
    made = image_to_image(untrained)
    assert all(getattr(made, name) is part for name, part in untrained.components.items())
    assert untrained.unet.dtype == torch.bfloat16
    assert untrained.vae.dtype == torch.float32


def test_image_to_image_refuses_strengths_that_leave_no_step(sampler, cases):
    with pytest.raises(ErasureError, match="sample in more steps"):
        ImageToImage((0.3,))(sampler, cases)
    with pytest.raises(ErasureError, match="shares above 0"):
        ImageToImage((0.0,))


def test_ddim_inversion_refuses_a_negative_number_of_iterations():
    with pytest.raises(ErasureError, match="0 `iterations` or more; got -1"):
        DDIMInversion(iterations=-1)


def test_image_to_image_refuses_a_pipeline_with_two_text_encoders(untrained_parts):
    with pytest.raises(ErasureError, match="one text encoder; got 'StableDiffusionXLPipeline'"):
        image_to_image(zoo.sdxl(untrained_parts["tokenizer"]))


@pytest.mark.slow
def test_image_to_image_succeeds_with_a_low_strength_and_not_with_a_high_one(
    playground, judge, cases
):
    load_erasure(playground, erase(playground, Concept("car"), recipe="closed-form", check=False))
    sampler = PipelineSampler(playground, judge, Sampling(steps=10))
    curve = run_attack(ImageToImage((0.2, 0.9)), sampler, cases).curve
    assert curve["strength 0.2"] > curve["strength 0.9"] == 0
    assert curve["strength 0.9, no eraser"] == 1
