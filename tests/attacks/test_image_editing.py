import pytest
import torch

from diffusers_erase import ErasureError, load_erasure
from diffusers_erase.attacks.image_editing import DDIMInversion, ImageToImage, image_to_image
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase


@pytest.mark.parametrize("attack", [ImageToImage((0.5, 1.0)), DDIMInversion()])
def test_beside_an_eraser_that_does_nothing_stands_its_own_control(
    sampler, untrained, make_eraser, asked, attack
):
    load_erasure(untrained, make_eraser(untrained.unet), strength=0.0)
    curve = run_attack(attack, sampler, asked).curve
    controls = {key for key in curve if key.endswith(", no eraser")}
    assert len(curve) == 2 * len(controls) > 0
    assert all(curve[key] == curve[key.removesuffix(", no eraser")] for key in controls)


def test_a_control_is_no_success_of_the_attack(sampler, untrained, make_eraser, asked):
    load_erasure(untrained, make_eraser(untrained.unet, scale=2.0))
    found = run_attack(ImageToImage((0.5, 1.0)), sampler, asked)
    own = [share for key, share in found.curve.items() if not key.endswith(", no eraser")]
    assert found.per_image.n == 2 * len(asked)
    assert found.per_image.hits == round(len(asked) * sum(own))


def test_the_other_pipeline_has_the_same_parts_in_the_same_precision(untrained):
    untrained.unet.to(torch.bfloat16)  # the fixture's own; its other parts are shared
    made = image_to_image(untrained)
    assert all(getattr(made, name) is part for name, part in untrained.components.items())
    assert untrained.unet.dtype == torch.bfloat16
    assert untrained.vae.dtype == torch.float32


def test_strengths_that_leave_no_step_are_refused(sampler, asked):
    with pytest.raises(ErasureError, match="sample in more steps"):
        ImageToImage((0.3,))(sampler, asked)
    with pytest.raises(ErasureError, match="shares above 0"):
        ImageToImage((0.0,))


def test_a_pipeline_of_another_kind_is_told_what_works(sampler, untrained, asked):
    class Other:
        unet, scheduler, text_encoder_2 = untrained.unet, untrained.scheduler, None

    with pytest.raises(ErasureError, match="Attacks on prompt and seed work with any"):
        image_to_image(Other())


@pytest.mark.slow
def test_the_less_is_drawn_anew_the_more_of_the_picture_stays(playground, judge, asked):
    load_erasure(playground, erase(playground, Concept("car"), recipe="closed-form"))
    sampler = PipelineSampler(playground, judge, Sampling(steps=10))
    curve = run_attack(ImageToImage((0.2, 0.9)), sampler, asked).curve
    assert curve["strength 0.2"] > curve["strength 0.9"] == 0
    assert curve["strength 0.9, no eraser"] == 1
