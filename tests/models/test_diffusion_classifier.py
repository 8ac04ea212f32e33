"""The denoiser as a classifier, on a denoiser whose pictures are known."""

from types import SimpleNamespace

import pytest
import torch

from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.diffusion_classifier import evidence


ALPHAS = torch.linspace(0.999, 0.01, 1000)
PICTURES = {"car": torch.full((1, 2, 2), 1.0), "oak": torch.full((1, 2, 2), -0.5)}


def states(name):
    """Text states that hold the picture which the prompt draws."""
    return PICTURES[name].reshape(1, 1, -1)


class Known(torch.nn.Module):
    """Predicts, for every prompt, the noise around the one picture that the prompt draws."""

    def __init__(self, prediction):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(in_channels=1, sample_size=2)
        self.schedule = NoiseSchedule(ALPHAS, prediction)

    def forward(self, z, t, text, return_dict=False):
        clean, alpha = text.reshape(z.shape), self.schedule.alpha(t)
        epsilon = (z - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * epsilon - (1 - alpha).sqrt() * clean
        outputs = {"epsilon": epsilon, "sample": clean, "v_prediction": velocity}
        return (outputs[self.schedule.prediction],)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 0.0), (1.0, -1.0), (0.25, 0.5)])
def test_evidence_is_one_for_the_prompt_s_picture_and_minus_one_for_the_other_s(
    prediction, share, expected
):
    unet = Known(prediction)
    picture = torch.lerp(PICTURES["car"], PICTURES["oak"], share)[None]
    found, distance = evidence(
        Denoiser(unet, unet.schedule), picture, states("car"), [states("oak")]
    )
    assert found.shape == distance.shape == (1, 1)
    assert found.item() == pytest.approx(expected, abs=1e-3)
    assert distance.item() > 0


def test_evidence_for_one_prompt_is_evidence_against_the_other():
    unet = Known("epsilon")
    pictures = 0.5 * torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    car, oak = (states(name).expand(3, -1, -1) for name in ("car", "oak"))
    of_car, apart = evidence(Denoiser(unet, unet.schedule), pictures, car, [oak, oak])
    of_oak, _ = evidence(Denoiser(unet, unet.schedule), pictures, oak, [car])
    torch.testing.assert_close(of_car[:1], -of_oak)
    torch.testing.assert_close(of_car[0], of_car[1])
    torch.testing.assert_close(apart[0], apart[1])


def test_prompts_of_the_same_meaning_have_no_distance():
    unet = Known("epsilon")
    car = states("car")
    found, distance = evidence(Denoiser(unet, unet.schedule), PICTURES["oak"][None], car, [car])
    assert distance.item() == found.item() == 0


def test_a_model_that_does_not_denoise_has_no_evidence():
    unet = Known("epsilon")
    unet.forward = lambda z, t, text, return_dict=False: (10 * torch.randn_like(z) + text.mean(),)
    picture = PICTURES["car"][None]
    found, distance = evidence(
        Denoiser(unet, unet.schedule), picture, states("car"), [states("oak")]
    )
    assert found.item() == 0
    assert distance.item() > 0
