from contextlib import contextmanager

import torch

from diffusers_erase.adapter import attached
from diffusers_erase.denoiser import Denoiser


def inputs(batch=3):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, 4, 16, 16, generator=generator)
    return z, torch.tensor([10, 500, 990])[:batch], torch.randn(batch, 24, 128, generator=generator)


def test_the_teacher_is_the_base_bit_for_bit_while_the_student_moves(untrained):
    z, t, c = inputs()
    with torch.no_grad():
        base = untrained.unet(z, t, c).sample
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(untrained.unet, lora.silenced)
        assert torch.equal(denoiser.student(z, t, c), base)  # B = 0: nothing moved yet
        for p in lora.parameters:
            torch.nn.init.normal_(p, std=0.3)
        assert not torch.allclose(denoiser.student(z, t, c), base, atol=1e-3)
        assert torch.equal(denoiser.teacher(z, t, c), base)


def test_only_the_eraser_gets_gradients_also_after_the_teacher_spoke(untrained):
    z, t, c = inputs()
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(untrained.unet, lora.silenced)
        goal = denoiser.teacher(z, t, c)
        assert not goal.requires_grad
        (denoiser.student(z, t, c) - goal - 1).pow(2).mean().backward()
        assert all(p.grad is not None for p in lora.parameters)
        ours = {id(p) for p in lora.parameters}
        assert all(p.grad is None for p in untrained.unet.parameters() if id(p) not in ours)


def test_evaluations_are_counted_per_latent(untrained):
    z, t, c = inputs()
    denoiser = Denoiser(untrained.unet)
    denoiser.teacher(z, t, c)
    denoiser.student(z[:1], t[:1], c[:1])
    assert denoiser.evaluations == 4


def test_the_switch_is_used_by_the_teacher_alone(untrained):
    calls = []

    @contextmanager
    def switch():
        calls.append("off")
        yield
        calls.append("on")

    denoiser = Denoiser(untrained.unet, switch)
    denoiser.student(*inputs(1))
    assert calls == []
    denoiser.teacher(*inputs(1))
    assert calls == ["off", "on"]


def test_autocast_changes_precision_but_not_the_type_of_the_answer(untrained):
    z, t, c = inputs()
    exact = Denoiser(untrained.unet).teacher(z, t, c)
    rough = Denoiser(untrained.unet, precision=torch.bfloat16).teacher(z, t, c)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.allclose(exact, rough, atol=0.1)
