from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached


def inputs(batch=3):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, 4, 16, 16, generator=generator)
    return z, torch.tensor([10, 500, 990])[:batch], torch.randn(batch, 24, 128, generator=generator)


def test_the_teacher_is_the_base_bit_for_bit_while_the_student_moves(untrained):
    z, t, c = inputs()
    with torch.no_grad():
        base = untrained.unet(z, t, c).sample
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(
            untrained.unet, NoiseSchedule.of(untrained.scheduler), lora.adapter_disabled
        )
        assert torch.equal(denoiser.student(z, t, c), base)  # B = 0: nothing moved yet
        for p in lora.parameters:
            torch.nn.init.normal_(p, std=0.3)
        assert not torch.allclose(denoiser.student(z, t, c), base, atol=1e-3)
        assert torch.equal(denoiser.teacher(z, t, c), base)


def test_only_the_eraser_gets_gradients_also_after_the_teacher_spoke(untrained):
    z, t, c = inputs()
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(
            untrained.unet, NoiseSchedule.of(untrained.scheduler), lora.adapter_disabled
        )
        goal = denoiser.teacher(z, t, c)
        assert not goal.requires_grad
        (denoiser.student(z, t, c) - goal - 1).pow(2).mean().backward()
        assert all(p.grad is not None for p in lora.parameters)
        ours = {id(p) for p in lora.parameters}
        assert all(p.grad is None for p in untrained.unet.parameters() if id(p) not in ours)


def test_evaluations_are_counted_per_latent(untrained):
    z, t, c = inputs()
    denoiser = Denoiser(untrained.unet, NoiseSchedule.of(untrained.scheduler))
    denoiser.teacher(z, t, c)
    denoiser.student(z[:1], t[:1], c[:1])
    assert denoiser.evaluations == 4
    assert denoiser.backwards == 1
    with torch.no_grad():
        denoiser.student(z, t, c)
    assert denoiser.cost == 7 + 2 * 1


def test_the_teacher_can_be_asked_which_way_a_text_should_move(untrained):
    """The gradient that a learnt target needs reaches the text, and nothing else."""
    z, t, c = inputs()
    denoiser = Denoiser(untrained.unet, NoiseSchedule.of(untrained.scheduler))
    untrained.unet.requires_grad_(False)
    c.requires_grad_(True)
    denoiser.teacher(z, t, c).pow(2).mean().backward()
    assert c.grad.abs().sum() > 0
    assert not denoiser.teacher(z, t, c.detach()).requires_grad


def test_what_the_network_predicts_does_not_change_what_the_denoiser_says():
    schedule = NoiseSchedule.of(DDIMScheduler())
    z, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([3, 500, 990])
    a = schedule.alpha(t)
    clean = (z - (1 - a).sqrt() * noise) / a.sqrt()
    for prediction, output in (
        ("epsilon", noise),
        ("sample", clean),
        ("v_prediction", a.sqrt() * noise - (1 - a).sqrt() * clean),
    ):
        said = replace(schedule, prediction=prediction).epsilon(output, z, t)
        assert torch.allclose(said, noise, atol=1e-3)


# upstream: diffusers converts tensors to arrays the old way
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_between_whole_times_the_schedule_goes_on_where_euler_goes():
    euler = EulerDiscreteScheduler(timestep_spacing="linspace")
    schedule = NoiseSchedule.of(euler)
    assert torch.allclose(schedule.alpha(torch.arange(1000)).flatten(), schedule.alphas, rtol=1e-4)
    euler.set_timesteps(7)
    assert torch.allclose(
        schedule.alpha(euler.timesteps).flatten(), 1 / (euler.sigmas[:-1] ** 2 + 1), rtol=1e-3
    )


def test_schedulers_without_such_a_schedule_are_refused_by_name():
    with pytest.raises(ErasureError, match=r"FlowMatchEulerDiscreteScheduler.*no noise schedule"):
        NoiseSchedule.of(FlowMatchEulerDiscreteScheduler())


def test_the_switch_is_used_by_the_teacher_alone(untrained):
    calls = []

    @contextmanager
    def switch():
        calls.append("off")
        yield
        calls.append("on")

    denoiser = Denoiser(untrained.unet, NoiseSchedule.of(untrained.scheduler), switch)
    denoiser.student(*inputs(1))
    assert calls == []
    denoiser.teacher(*inputs(1))
    assert calls == ["off", "on"]


def test_autocast_changes_precision_but_not_the_type_of_the_answer(untrained):
    z, t, c = inputs()
    exact = Denoiser(untrained.unet, NoiseSchedule.of(untrained.scheduler)).teacher(z, t, c)
    rough = Denoiser(
        untrained.unet, NoiseSchedule.of(untrained.scheduler), precision=torch.bfloat16
    ).teacher(z, t, c)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.allclose(exact, rough, atol=0.1)


def zero_snr(prediction):
    return DDIMScheduler(
        beta_schedule="scaled_linear", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        prediction_type=prediction, clip_sample=False,
    )  # fmt: skip


def test_alpha_is_zero_where_the_schedule_ends_in_noise():
    scheduler = zero_snr("v_prediction")
    alpha = NoiseSchedule.of(scheduler).alpha(torch.arange(1000)).flatten()
    assert torch.allclose(alpha, scheduler.alphas_cumprod, rtol=1e-4)
    assert alpha[-1] == 0


def test_noise_predictions_are_refused_where_the_schedule_ends_in_noise():
    with pytest.raises(ErasureError, match=r"ends in noise alone.*`rescale_betas_zero_snr`"):
        NoiseSchedule.of(zero_snr("epsilon"))


def test_noise_is_that_of_the_students_prediction(untrained):
    z, t, c = inputs()
    schedule = NoiseSchedule.of(zero_snr("v_prediction"))
    denoiser = Denoiser(untrained.unet, schedule)
    a, v = schedule.alpha(t), denoiser.student(z, t, c)
    assert torch.allclose(denoiser.noise(z, t, c), a.sqrt() * v + (1 - a).sqrt() * z)
    last = torch.full((len(z),), 999)
    assert torch.equal(denoiser.noise(z, last, c), z)
