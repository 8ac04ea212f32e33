import pytest
import torch

from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.denoising_loss import denoising_loss, noised
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode


@pytest.fixture
def arguments(untrained):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
    return clean, encode(untrained, ["a car", "a bus"]), torch.tensor([5, 700]), noise


def test_denoising_loss_is_the_mean_square_error_of_the_predicted_noise(untrained, arguments):
    clean, states, t, noise = arguments
    alphas = untrained.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    z = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
    predicted = untrained.unet(z, t, states).sample
    expected = (predicted - noise).square().mean((1, 2, 3))
    found = denoising_loss(Model.of(untrained).noise_predictor(), *arguments)
    assert torch.allclose(found, expected, rtol=1e-4)
    assert found.shape == (2,)


def test_denoising_loss_costs_three_evaluations_per_latent_and_one_without_gradient(
    untrained, arguments
):
    denoiser = Model.of(untrained).noise_predictor()
    with counted(untrained.unet) as spent:
        denoising_loss(denoiser, *arguments)
        assert spent() == denoiser.cost == 6
        with torch.no_grad():
            denoising_loss(denoiser, *arguments)
        assert spent() == denoiser.cost == 8


def test_denoising_loss_against_the_models_own_prediction_is_zero(untrained, arguments):
    """P4D without an eraser and with the prompt itself."""
    clean, states, t, noise = arguments
    denoiser, c = Model.of(untrained).noise_predictor(), states.requires_grad_()
    with torch.no_grad():
        own = denoiser.student(noised(denoiser, clean, t, noise), t, states)
    for target, zero in ((own, True), (None, False)):
        loss = denoising_loss(denoiser, clean, c, t, noise, target).sum()
        (gradient,) = torch.autograd.grad(loss, [c])
        assert (loss.item() == 0 and not gradient.any()) == zero
