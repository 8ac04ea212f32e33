from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories


@pytest.fixture
def sampled(untrained):
    denoiser = Denoiser(untrained.unet, NoiseSchedule.of(untrained.scheduler))
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


def test_noised_pictures_are_those_of_the_runs_at_times_spread_over_all(sampled, untrained):
    denoiser, kept = sampled
    options = {"guidance": 3.0, "seed": 5}
    found = kept.with_noised_pictures(denoiser, 4, **options)
    assert denoiser.evaluations == 2 * len(found) == 2 * (12 + 3 * 4)
    assert torch.equal(found.z[:12], kept.z)
    new = torch.arange(12, 24)
    times = found.t[new].view(3, 4)
    assert ((times - 400) // 150).tolist() == [[0, 1, 2, 3]] * 3
    assert found.prompt[new].view(3, 4).tolist() == [[p] * 4 for p in range(3)]
    for role in ("concept", "null"):
        fresh = denoiser.teacher(found.z[new], found.t[new], found.states[role][found.prompt[new]])
        torch.testing.assert_close(found.scores[role][new], fresh, atol=1e-5, rtol=0)

    start = kept.z[(kept.prompt == 1) & (kept.t == kept.t.max())]
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    picture = untrained("a red car", latents=start, **options).images
    own = new[found.prompt[new] == 1]
    alpha = denoiser.schedule.alpha(found.t[own])
    noise = (found.z[own] - alpha.sqrt() * picture) / (1 - alpha).sqrt()
    assert (noise.square().mean((1, 2, 3)) - 1).abs().max() < 0.2  # noise of variance 1, no more


def test_a_student_without_an_eraser_walks_where_the_teacher_does(sampled, untrained):
    denoiser, kept = sampled
    states, null = kept.states["concept"], kept.states["null"][:1]
    options = {"guidance": 3.0, "steps": 4, "seed": 7, "batch": 2}
    own = sample_trajectories(denoiser, untrained.scheduler, states, null, student=True, **options)
    assert torch.equal(own.z, kept.z)
    assert torch.equal(own.t, kept.t)
    assert torch.equal(own.prompt, kept.prompt)
    assert not own.scores
    assert denoiser.backwards == 0


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


def test_other_schedulers_lend_their_noise_or_are_refused(sampled, untrained):
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


class Oracle(torch.nn.Module):
    """Knows the one clean picture there is, so its runs are straight: the noise never changes."""

    def __init__(self, schedule, clean, prediction):
        super().__init__()
        self.schedule, self.clean, self.prediction = schedule, clean, prediction
        self.config = SimpleNamespace(in_channels=4, sample_size=8)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, z, t, states, return_dict):
        a = self.schedule.alpha(t)
        noise = (z - a.sqrt() * self.clean) / (1 - a).sqrt()
        output = {
            "epsilon": noise,
            "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * self.clean,
            "sample": self.clean.expand_as(z),
        }[self.prediction]
        return (output,)


# upstream: diffusers converts tensors to arrays the old way
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "kind",
    [
        DDIMScheduler,
        PNDMScheduler,
        EulerDiscreteScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        HeunDiscreteScheduler,
    ],
)
def test_every_latent_is_kept_with_the_time_it_stands_at(kind, prediction):
    """Re-noising: with the perfect denoiser every z_t is √ᾱ x_0 + √(1-ᾱ) ε with one ε."""
    options = {PNDMScheduler: {"skip_prk_steps": True}, DDIMScheduler: {"clip_sample": False}}
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        **options.get(kind, {}),
    )
    schedule = NoiseSchedule.of(scheduler)
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    denoiser = Denoiser(Oracle(schedule, clean, prediction), schedule)
    states = torch.zeros(2, 3, 5)
    kept = sample_trajectories(
        denoiser, scheduler, states, states[:1], steps=10, seed=3, sampler="own"
    )
    a = schedule.alpha(kept.t)
    noise = (kept.z - a.sqrt() * clean) / (1 - a).sqrt()
    for prompt in (0, 1):
        own = noise[kept.prompt == prompt]
        assert len(own) >= 10
        assert torch.allclose(own, own[:1].expand_as(own), atol=2e-3)
    predicted = schedule.epsilon(kept.scores["concept"], kept.z, kept.t)
    assert torch.allclose(predicted, noise, atol=5e-3)
    late = schedule.alpha((kept.t - 39).clamp(min=0))  # the pairing of some released samplers
    wrong = (kept.z - late.sqrt() * clean) / (1 - late).sqrt()
    assert (wrong - noise).abs().mean() > 0.05


def test_seeds_of_single_prompts_do_not_depend_on_the_others(untrained):
    denoiser = Denoiser(untrained.unet, NoiseSchedule.of(untrained.scheduler))
    states, null = encode(untrained, ["a car", "an oak"]), encode(untrained, [""])
    both = sample_trajectories(denoiser, untrained.scheduler, states, null, steps=2, seed=[5, 6])
    one = sample_trajectories(denoiser, untrained.scheduler, states[1:], null, steps=2, seed=[6])
    assert torch.allclose(both.z[both.prompt == 1], one.z, atol=1e-4)


def test_parts_share_a_draw(sampled):
    denoiser, kept = sampled
    whole = kept.draw(denoiser, 6, torch.Generator().manual_seed(1))
    halves = [
        kept.draw(denoiser, 6, torch.Generator().manual_seed(1), slice(rank, None, 2))
        for rank in (0, 1)
    ]
    assert torch.equal(torch.stack([h.rows for h in halves], 1).flatten(), whole.rows)


def test_the_seed_decides_everything(untrained):
    denoiser = Denoiser(untrained.unet, NoiseSchedule.of(untrained.scheduler))
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
