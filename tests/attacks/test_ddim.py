import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_erase.attacks import ddim
from diffusers_erase.attacks.attack_run import base_pictures, draw_cases
from diffusers_erase.attacks.ddim import (
    ddim_step,
    ddim_steps,
    draw_without_text,
    invert_ddim,
    sample_ddim,
)
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoising_loss import encode_pictures
from diffusers_erase.playground.building import networks


def step_pairs(eta, steps):
    """Our step and that of diffusers, from the same latents, at every time."""
    scheduler = networks.scheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    for step in ddim_steps(scheduler, steps):
        z, eps, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
        s = eta * step.sigma
        ours = ddim_step(z, eps, step.alpha, step.to, s, s * noise if eta else None)
        given = {"variance_noise": noise} if eta else {}
        yield ours, scheduler.step(eps, step.t, z, eta=eta, **given).prev_sample


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_equals_that_of_diffusers(eta, steps):
    assert all(torch.equal(ours, theirs) for ours, theirs in step_pairs(eta, steps))


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("eta", [1.17, 1.34, 1.51, 1.68, 1.85])
def test_ddim_step_is_finite_for_etas_at_which_diffusers_is_nan(eta, steps):
    ours, theirs = zip(*step_pairs(eta, steps), strict=True)
    assert all(step.isfinite().all() for step in ours)
    assert not all(step.isfinite().all() for step in theirs)


def test_ddim_steps_have_the_times_of_the_pipelines_scheduler(untrained):
    untrained.scheduler.set_timesteps(7)
    times = [step.t for step in ddim_steps(untrained.scheduler, 7)]
    assert times == untrained.scheduler.timesteps.tolist()


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_sample_ddim_without_noise_draws_the_pipelines_pictures(untrained, fickle, cases, guidance):
    sampler = PipelineSampler(untrained, fickle, Sampling(steps=3, batch=2, guidance=guidance))
    ours = sample_ddim(sampler, cases, eta=0.0, scale=1.0, variant=1)
    theirs = draw_cases(sampler, cases)
    assert isinstance(untrained.scheduler, DDIMScheduler)
    assert [p.tobytes() for p in ours] == [p.tobytes() for p in theirs]


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_sample_ddim_draws_the_pipelines_pictures_on_a_zero_terminal_snr_schedule(
    untrained, fickle, cases, prediction
):
    untrained.scheduler = DDIMScheduler.from_config(
        untrained.scheduler.config,
        prediction_type=prediction,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    sampler = PipelineSampler(untrained, fickle, Sampling(steps=3, batch=2, guidance=3.0))
    assert ddim_steps(untrained.scheduler, 3)[0].alpha == 0
    ours = sample_ddim(sampler, cases, eta=0.0, scale=1.0, variant=1)
    for one, other in zip(ours, draw_cases(sampler, cases), strict=True):
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= 1
    assert invert_ddim(sampler, ours).isfinite().all()


def test_sample_ddim_variants_differ_by_their_noise_alone(sampler, cases):
    def pictures(eta, variant):
        drawn = sample_ddim(sampler, cases, eta=eta, scale=1.0, variant=variant)
        return [p.tobytes() for p in drawn]

    assert pictures(0.0, 1) == pictures(0.0, 2)
    assert pictures(1.0, 1) == pictures(1.0, 1)
    assert pictures(1.0, 1) != pictures(1.0, 2)


def test_invert_ddim_gives_latents_from_which_the_picture_is_drawn(playground, judge):
    sampler = PipelineSampler(playground, judge, Sampling(steps=25, guidance=1.0))
    (picture,) = base_pictures(sampler, [PromptCase("target", "a photo of a red car", ("car",), 0)])
    latents = invert_ddim(sampler, [picture])
    empty = [PromptCase("null", "", (), 0)]
    (again,), (other,) = draw_cases(sampler, empty, latents=latents), draw_cases(sampler, empty)

    def error(one):
        return np.abs(np.asarray(one, float) - np.asarray(picture, float)).mean()

    assert error(again) < 10 < error(other)


@pytest.fixture
def recorded_latents(monkeypatch):
    """Latents that are decoded."""
    found = []
    decode = ddim._decode
    monkeypatch.setattr(ddim, "_decode", lambda pipe, z: found.extend(z) or decode(pipe, z))
    return found


def test_invert_ddim_without_iterations_predicts_noise_where_each_step_begins(sampler, cases):
    """The formula written out, in batches of two."""
    pictures = base_pictures(sampler, cases)
    denoiser, null = sampler.model.noise_predictor(), sampler.model.encode([""])
    found = []
    for batch in (pictures[:2], pictures[2:]):
        z = encode_pictures(sampler.pipe, batch)
        for step in reversed(ddim_steps(sampler.pipe.scheduler, 2)):
            t = torch.full((len(z),), step.t)
            with torch.no_grad():
                eps = denoiser.student(z, t, null.expand(len(z), -1, -1))
            clean = (z - (1 - step.to) ** 0.5 * eps) / step.to**0.5
            z = step.alpha**0.5 * clean + (1 - step.alpha) ** 0.5 * eps
        found.append(z)
    assert torch.equal(invert_ddim(sampler, pictures), torch.cat(found))
    assert torch.equal(invert_ddim(sampler, pictures, 0), torch.cat(found))


def test_invert_ddim_with_more_iterations_is_nearer_to_the_inverse_of_ddim(
    untrained, fickle, cases, recorded_latents
):
    """In a model that never knew any concept, damped so that the steps are contractions."""
    untrained.unet.conv_out.weight.data *= 0.03  # the fixture's own
    sampler = PipelineSampler(untrained, fickle, Sampling(steps=3))
    pictures = base_pictures(sampler, cases)
    clean = encode_pictures(sampler.pipe, pictures)
    errors = []
    for iterations in (0, 1, 3, 6):
        recorded_latents.clear()
        draw_without_text(sampler, invert_ddim(sampler, pictures, iterations))
        errors.append((torch.stack(recorded_latents) - clean).square().mean().sqrt().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


def test_draw_without_text_draws_the_pipelines_pictures_of_the_empty_prompt(untrained, fickle):
    sampler = PipelineSampler(untrained, fickle, Sampling(steps=3, batch=2, guidance=1.0))
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    empty = [PromptCase("null", "", (), seed) for seed in range(3)]
    theirs = draw_cases(sampler, empty, each={"latents": latents})
    ours = draw_without_text(sampler, latents)
    assert [p.tobytes() for p in ours] == [p.tobytes() for p in theirs]
