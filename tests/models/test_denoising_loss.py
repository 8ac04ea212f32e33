import pytest
import torch

from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.denoising_loss import denoising_loss, noised
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode


@pytest.fixture
def drawn(untrained):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
    return clean, encode(untrained, ["a car", "a bus"]), torch.tensor([5, 700]), noise


def test_the_loss_is_the_mean_square_of_what_is_missed(untrained, drawn):
    clean, states, t, noise = drawn
    alphas = untrained.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    z = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
    said = untrained.unet(z, t, states).sample
    wanted = (said - noise).square().mean((1, 2, 3))
    found = denoising_loss(Model.of(untrained).noise_predictor(), *drawn)
    assert torch.allclose(found, wanted, rtol=1e-4)
    assert found.shape == (2,)


def test_it_costs_three_evaluations_a_latent_and_one_without_a_gradient(untrained, drawn):
    denoiser = Model.of(untrained).noise_predictor()
    with counted(untrained.unet) as spent:
        denoising_loss(denoiser, *drawn)
        assert spent() == denoiser.cost == 6
        with torch.no_grad():
            denoising_loss(denoiser, *drawn)
        assert spent() == denoiser.cost == 8


def test_against_the_own_score_there_is_nothing_to_learn(untrained, drawn):
    """P4D where no eraser is on, and the prompt is said as it is."""
    clean, states, t, noise = drawn
    denoiser, asked = Model.of(untrained).noise_predictor(), states.requires_grad_()
    with torch.no_grad():
        own = denoiser.student(noised(denoiser, clean, t, noise), t, states)
    for target, zero in ((own, True), (None, False)):
        loss = denoising_loss(denoiser, clean, asked, t, noise, target).sum()
        (gradient,) = torch.autograd.grad(loss, [asked])
        assert (loss.item() == 0 and not gradient.any()) == zero
