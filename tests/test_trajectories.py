import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler

from diffusers_erase.concepts import encode
from diffusers_erase.denoiser import Denoiser
from diffusers_erase.errors import ErasureError
from diffusers_erase.trajectories import sample_trajectories


@pytest.fixture
def sampled(untrained):
    denoiser = Denoiser(untrained.unet)
    states, null = encode(untrained, ["a car", "a red car", "an oak"]), encode(untrained, [""])
    kept = sample_trajectories(
        denoiser, untrained.scheduler, states, null, guidance=3.0, steps=4, seed=7, batch=2
    )
    return denoiser, kept


def test_sampling_costs_two_evaluations_a_latent(sampled):
    denoiser, kept = sampled
    assert len(kept) == 3 * 4
    assert denoiser.evaluations == 2 * len(kept)


def test_kept_scores_equal_fresh_ones(sampled):
    denoiser, kept = sampled
    for role in ("concept", "null"):
        fresh = denoiser.teacher(kept.z, kept.t, kept.states[role][kept.prompt])
        assert torch.allclose(kept.scores[role], fresh, atol=1e-5)
    assert not torch.allclose(kept.scores["concept"], kept.scores["null"])


def test_the_run_ends_where_the_pipeline_ends(sampled, untrained):
    _, kept = sampled
    prompt, steps = 1, 4
    start = kept.z[(kept.prompt == prompt) & (kept.t == kept.t.max())]
    final = untrained(
        "a red car",
        latents=start,
        num_inference_steps=steps,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    last = (kept.prompt == prompt) & (kept.t == kept.t.min())
    untrained.scheduler.set_timesteps(steps)
    empty, conditional = kept.scores["null"][last], kept.scores["concept"][last]
    step = untrained.scheduler.step(
        empty + 3.0 * (conditional - empty), int(kept.t.min()), kept.z[last]
    )
    assert torch.allclose(step.prev_sample, final, atol=1e-4)


def test_schedulers_of_other_kinds_do_the_same_or_are_refused(sampled, untrained):
    denoiser, kept = sampled
    noise = {k: untrained.scheduler.config[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    states, null = encode(untrained, ["a car", "a red car", "an oak"]), encode(untrained, [""])
    options = {"guidance": 3.0, "steps": 4, "seed": 7, "batch": 2}
    euler = EulerDiscreteScheduler(**noise, steps_offset=1)
    same = sample_trajectories(denoiser, euler, states, null, **options)
    assert torch.equal(same.t, kept.t)
    assert torch.allclose(same.z[:4], kept.z[:4], atol=1e-4)
    with pytest.raises(ErasureError, match=r"EDMEulerScheduler.*no noise schedule"):
        sample_trajectories(denoiser, EDMEulerScheduler(), states, null, **options)


def test_the_seed_decides_everything(untrained):
    denoiser = Denoiser(untrained.unet)
    states, null = encode(untrained, ["a car"]), encode(untrained, [""])
    one, same, other = (
        sample_trajectories(denoiser, untrained.scheduler, states, null, steps=2, seed=seed).z
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_remembered_scores_are_looked_up_and_others_computed(sampled, untrained):
    denoiser, kept = sampled
    states = encode(untrained, ["a truck", "a red truck", "a pine"])
    before = denoiser.evaluations
    kept = kept.remember(denoiser, "target", states)
    assert denoiser.evaluations - before == len(kept)
    view = kept.draw(denoiser, 5, torch.Generator().manual_seed(0))
    before = denoiser.evaluations
    looked_up = view.teacher("target")
    assert denoiser.evaluations == before
    assert torch.allclose(
        looked_up, denoiser.teacher(view.z, view.t, view.states["target"]), atol=1e-5
    )


def test_a_draw_keeps_latents_times_prompts_and_scores_together(sampled):
    denoiser, kept = sampled
    view = kept.draw(denoiser, 8, torch.Generator().manual_seed(3))
    for i in range(8):
        row = next(k for k in range(len(kept)) if torch.equal(kept.z[k], view.z[i]))
        assert kept.t[row] == view.t[i]
        assert torch.equal(kept.states["concept"][kept.prompt[row]], view.states["concept"][i])
        assert torch.equal(kept.scores["concept"][row], view.known["concept"][i])
