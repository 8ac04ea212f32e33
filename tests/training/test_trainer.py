from dataclasses import replace
from itertools import islice

import pytest
import torch

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.training.objectives import Steer
from diffusers_erase.training.recipes import ESD, RECIPES, Recipe
from diffusers_erase.training.trainer import Pace, Renewal, train


@pytest.fixture
def setting(untrained):
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(
            untrained.unet, NoiseSchedule.of(untrained.scheduler), lora.adapter_disabled
        )
        states = encode(untrained, ["a car", "a red car"])
        kept = sample_trajectories(
            denoiser, untrained.scheduler, states, encode(untrained, [""]), steps=4
        )
        kept = kept.remember(denoiser, "target", encode(untrained, ["an oak", "a red oak"]))
        yield denoiser, lora, {"concept": kept}


def loop(setting, steps, seed=0):
    denoiser, lora, trajectories = setting
    return train(
        denoiser,
        lora.parameters,
        trajectories,
        Steer(),
        pace=Pace(steps, batch=4, learning_rate=3e-3),
        seed=seed,
    )


def test_the_loss_falls(setting):
    losses = [step.loss for step in loop(setting, 30)]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_each_step_costs_one_student_pass_when_all_scores_are_kept(setting):
    denoiser = setting[0]
    before = denoiser.evaluations
    list(loop(setting, 3))
    assert denoiser.evaluations - before == 3 * 4


def test_the_caller_may_leave_at_any_time_and_nothing_runs_ahead(setting):
    before = setting[0].evaluations
    assert [step.index for step in islice(loop(setting, 1000), 2)] == [0, 1]
    assert setting[0].evaluations - before == 2 * 4


def test_the_seed_decides_the_run(untrained, setting):
    _, lora, _ = setting
    start = [p.detach().clone() for p in lora.parameters]

    def run(seed):
        for p, value in zip(lora.parameters, start, strict=True):
            p.data.copy_(value)
        list(loop(setting, 3, seed))
        return torch.cat([p.detach().flatten() for p in lora.parameters])

    one, same, other = run(1), run(1), run(2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_on_policy_latents_are_the_students_and_their_scores_are_asked_for(untrained, setting):
    denoiser, _, trajectories = setting
    concept = trajectories["concept"]
    states, null = concept.states["concept"], concept.states["null"][:1]
    met = []

    def sample(step):
        new = sample_trajectories(
            denoiser, untrained.scheduler, states, null, steps=4, seed=0, student=True
        )
        met.append((step, new.z))
        return replace(new, states=concept.states)

    before = denoiser.evaluations
    options = {"pace": Pace(7, batch=4, learning_rate=3e-3), "renewal": Renewal(3, sample)}
    list(train(denoiser, setting[1].parameters, trajectories, Steer(), **options))
    (first, early), (second, late) = met
    assert (first, second) == (3, 6)
    assert not torch.allclose(early, concept.z)
    assert not torch.allclose(early, late)
    sampled, known, asked = 2 * 2 * len(concept), 3 * 4, 4 * 4 * 3  # student, target and null
    assert denoiser.evaluations - before == sampled + known + asked


def test_recipes_know_their_names_and_refuse_nonsense():
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert ESD.erase == Steer(eta=1.0)
    with pytest.raises(ErasureError, match="`steps` must be positive; got 0"):
        Recipe("mine", steps=0)
    with pytest.raises(ErasureError, match="`refresh` is a number of steps, or 0; got -1"):
        Recipe("mine", refresh=-1)
