from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import mse_loss

from diffusers_erase.adapter import attached
from diffusers_erase.denoiser import Denoiser
from diffusers_erase.training.objectives import Keep, Steer, Sum
from diffusers_erase.trajectories import View


@pytest.fixture
def view(untrained):
    """A view of three latents with a student that has moved."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 16, 16, generator=generator)
    states = {
        role: torch.randn(3, 24, 128, generator=generator) for role in ("concept", "target", "null")
    }
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        for p in lora.parameters:
            torch.nn.init.normal_(p, std=0.2, generator=generator)
        denoiser = Denoiser(untrained.unet, lora.silenced)
        view = View(denoiser, z, torch.tensor([50, 400, 900]), states, {})
        yield SimpleNamespace(view=view, lora=lora, unet=untrained.unet, denoiser=denoiser)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_steer_equals_esd_written_out(view, eta):
    """Both published forms: from the target, and from the concept's own score with eta + 1."""
    v = view.view
    with torch.no_grad(), view.lora.silenced():
        concept = view.unet(v.z, v.t, v.states["concept"]).sample
        target = view.unet(v.z, v.t, v.states["target"]).sample
    student = view.unet(v.z, v.t, v.states["concept"]).sample
    from_target = mse_loss(student, target - eta * (concept - target))
    from_concept = mse_loss(student, concept - (eta + 1) * (concept - target))
    loss = Steer(eta)({"concept": v})
    assert torch.allclose(loss, from_target, rtol=1e-5)
    assert torch.allclose(loss, from_concept, rtol=1e-5)


def test_without_negative_guidance_steer_is_pure_replacement(view):
    v = view.view
    assert torch.allclose(
        Steer(0.0)({"concept": v}), mse_loss(v.student("concept"), v.teacher("target")), rtol=1e-6
    )
    assert not torch.allclose(Steer(0.0)({"concept": v}), Steer(1.0)({"concept": v}))


def test_keep_is_zero_for_the_base_and_only_for_the_base(view):
    v = view.view
    assert Keep("null", at="concept")({"concept": v}) > 1e-4
    with view.lora.silenced():
        assert Keep("null", at="concept")({"concept": v}) == 0


def test_sum_is_linear_in_its_weights(view):
    views = {"concept": view.view}
    steer, keep = Steer(1.0), Keep("null", at="concept")
    both = Sum(((2.0, steer), (0.5, keep)))(views)
    assert torch.allclose(both, 2 * steer(views) + 0.5 * keep(views))


def test_losses_reach_the_eraser_alone(view):
    Sum(((1.0, Steer()), (1.0, Keep("null", at="concept"))))({"concept": view.view}).backward()
    ours = {id(p) for p in view.lora.parameters}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in view.lora.parameters)
    assert all(p.grad is None for p in view.unet.parameters() if id(p) not in ours)
