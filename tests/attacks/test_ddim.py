import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_erase.attacks.attack_run import drawn, originals
from diffusers_erase.attacks.ddim import ascended, descended, stepped, strides
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.playground.building import networks


def walk_both(eta, steps):
    """Our step and the scheduler's from the same places, all along a walk."""
    scheduler = networks.scheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    for stride in strides(scheduler, steps):
        z, eps, noise = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
        s = eta * stride.sigma
        ours = stepped(z, eps, stride.alpha, stride.to, s, s * noise if eta else None)
        given = {"variance_noise": noise} if eta else {}
        yield ours, scheduler.step(eps, stride.t, z, eta=eta, **given).prev_sample


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_is_that_of_ddim(eta, steps):
    assert all(torch.equal(ours, theirs) for ours, theirs in walk_both(eta, steps))


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("eta", [1.17, 1.34, 1.51, 1.68, 1.85])
def test_a_step_is_a_number_where_that_of_ddim_is_none(eta, steps):
    ours, theirs = zip(*walk_both(eta, steps), strict=True)
    assert all(step.isfinite().all() for step in ours)
    assert not all(step.isfinite().all() for step in theirs)


def test_times_are_those_that_the_pipeline_walks(untrained):
    untrained.scheduler.set_timesteps(7)
    assert [s.t for s in strides(untrained.scheduler, 7)] == untrained.scheduler.timesteps.tolist()


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_without_noise_a_picture_is_that_of_the_pipeline(untrained, fickle, asked, guidance):
    sampler = PipelineSampler(untrained, fickle, Sampling(steps=3, batch=2, guidance=guidance))
    ours = descended(sampler, asked, eta=0.0, scale=1.0, variant=1)
    theirs = drawn(sampler, asked)
    assert isinstance(untrained.scheduler, DDIMScheduler)
    assert [p.tobytes() for p in ours] == [p.tobytes() for p in theirs]


def test_variants_differ_by_their_noise_alone(sampler, asked):
    def drawn_with(eta, variant):
        walked = descended(sampler, asked, eta=eta, scale=1.0, variant=variant)
        return [p.tobytes() for p in walked]

    assert drawn_with(0.0, 1) == drawn_with(0.0, 2)
    assert drawn_with(1.0, 1) == drawn_with(1.0, 1)
    assert drawn_with(1.0, 1) != drawn_with(1.0, 2)


def test_what_is_walked_up_is_walked_down_again(playground, judge):
    sampler = PipelineSampler(playground, judge, Sampling(steps=25, guidance=1.0))
    asked = [PromptCase("target", "a photo of a red car", ("car",), 0)]
    picture = originals(sampler, asked)[0]
    latents = ascended(sampler, [picture])
    empty = [PromptCase("null", "", (), 0)]
    again, fresh = drawn(sampler, empty, latents=latents)[0], drawn(sampler, empty)[0]

    def apart(one):
        return np.abs(np.asarray(one, float) - np.asarray(picture, float)).mean()

    assert apart(again) < 10 < apart(fresh)
