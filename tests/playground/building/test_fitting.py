import os
import signal
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing import ProcessExitedException

from diffusers_erase.playground.building import fitting
from diffusers_erase.playground.building.fitting import Plan, TrainingState, fit


CPU = torch.device("cpu")
PLAN = Plan("tiny", steps=30, batch=16, learning_rate=3e-2, warm_up=3, ema=0.9, save_every=10)


class Tiny:
    """Learn sin(x₁ + x₂ + x₃); dropout, so that the network draws lots of its own."""

    def __init__(self, network, scale=1.0):
        self.network, self.scale = network, scale

    def loss(self, generator, *, batch, progress):
        assert 0 <= progress < 1
        x = torch.randn(batch, 3, generator=generator)
        error = self.network(x)[:, 0].float() - x.sum(1).sin()
        return self.scale * error.pow(2).mean()


class Doomed:
    """`Tiny`, until the operating system ends it between two checkpoints."""

    def __init__(self, task):
        self.network, self.task = task.network, task

    def loss(self, generator, *, batch, progress):
        if progress >= 16 / 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.task.loss(generator, batch=batch, progress=progress)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))


def make_tiny(folder, device):
    return Tiny(network().to(device))


def make_doomed(folder, device):
    return Doomed(make_tiny(folder, device))


def make_nothing(folder, device):
    raise AssertionError("nothing was left to do")


def start(folder, plan=PLAN):
    folder.mkdir(exist_ok=True)
    return TrainingState(make_tiny(folder, CPU), folder, plan)


def advance(run, until):
    while run.step < until:
        run.advance(0, 1, CPU)
    return run


def uninterrupted(folder, plan=PLAN):
    """The bytes of the result of a run that nothing disturbs."""
    run = advance(start(folder, plan), plan.steps)
    run.finish()
    return run.target.read_bytes()


@pytest.fixture
def cpu(monkeypatch):
    """Hide any accelerator from this process and its children."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@torch.no_grad()
def error(task):
    task.network.eval()
    return task.loss(torch.Generator().manual_seed(99), batch=512, progress=0).item()


@pytest.mark.parametrize("half", [False, True])
def test_the_loss_falls(tmp_path, half):
    plan = Plan("tiny", steps=120, batch=32, learning_rate=3e-2, warm_up=10, half=half)
    task = Tiny(network())
    before = error(Tiny(network()))
    run = TrainingState(task, tmp_path, plan)
    if half:
        task.loss = half_loss(task)
    advance(run, plan.steps)
    run.finish()
    assert error(Tiny(task.network)) < before / 2


def half_loss(task):
    """The network lives in bfloat16, so its input must."""

    def loss(generator, *, batch, progress):
        x = torch.randn(batch, 3, generator=generator)
        return (task.network(x.bfloat16())[:, 0].float() - x.sum(1).sin()).pow(2).mean()

    return loss


@pytest.mark.parametrize("stop", [1, 13, 29])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, stop):
    expected = uninterrupted(tmp_path / "one")
    first = advance(start(tmp_path / "two"), stop)
    first.save()
    halfway = first.weights.detach().clone()
    second = start(tmp_path / "two")
    assert second.step == stop
    assert torch.equal(second.weights, halfway)
    advance(second, PLAN.steps).finish()
    assert not torch.equal(second.weights, halfway)
    assert second.target.read_bytes() == expected


def test_a_run_without_its_checkpoint_starts_again(tmp_path):
    first = advance(start(tmp_path), 5)
    assert start(tmp_path).step == 0
    first.save()
    assert start(tmp_path).step == 5


def test_a_checkpoint_torn_off_in_writing_is_not_read(tmp_path):
    run = advance(start(tmp_path), 5)
    run.save()
    run.path.with_suffix(".draft").write_bytes(b"half a checkpoint")
    again = start(tmp_path)
    assert again.step == 5
    advance(again, 6).save()
    assert start(tmp_path).step == 6


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, cpu):
    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        fit(make_doomed, folder, PLAN, processes=1)
    assert start(folder).step == 10
    assert not (folder / "tiny.safetensors").exists()
    fit(make_tiny, folder, PLAN, processes=1)
    assert (folder / "tiny.safetensors").read_bytes() == uninterrupted(tmp_path / "whole")


def test_a_finished_run_is_not_run_again(tmp_path):
    (tmp_path / "tiny.safetensors").write_bytes(b"done")
    fit(make_nothing, tmp_path, PLAN, processes=1)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]
    assert (tmp_path / "tiny.safetensors").read_bytes() == b"done"


def test_the_result_is_the_average_under_the_networks_own_names(tmp_path):
    run = advance(start(tmp_path), PLAN.steps)
    run.finish()
    stored = load_file(run.target)
    assert list(stored) == sorted(network().state_dict())
    flat = torch.cat([stored[name].reshape(-1) for name, _ in network().named_parameters()])
    assert torch.equal(flat, run.average)
    assert not torch.equal(flat, run.weights.detach())


def test_the_rate_warms_up_stays_and_falls_to_one_percent():
    plan = Plan("rates", steps=1000, batch=1, learning_rate=0.5, warm_up=100, flat=0.3)
    rates = [plan.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.5 / 100)
    assert rates[49] == pytest.approx(0.25)
    assert rates[99:301] == pytest.approx([0.5] * 202)
    assert all(later < earlier for earlier, later in pairwise(rates[300:930]))
    assert plan.rate(650) == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0.005)
    assert min(rates[100:]) == pytest.approx(0.005)


def test_the_rate_of_the_plan_is_the_rate_of_the_optimiser(tmp_path):
    run = start(tmp_path)
    for step in range(5):
        run.advance(0, 1, CPU)
        assert run.optimiser.param_groups[0]["lr"] == PLAN.rate(step)
    assert PLAN.rate(0) != PLAN.rate(4)


def test_half_keeps_exact_weights_beside_the_rounded_ones(tmp_path):
    plan = Plan("half", steps=40, batch=16, learning_rate=1e-4, warm_up=1, half=True)
    task = Tiny(network())
    task.loss = half_loss(task)
    run = TrainingState(task, tmp_path, plan)
    begun = run.weights.detach().clone()
    rounded = run.live.clone()
    run.advance(0, 1, CPU)
    assert {p.dtype for p in task.network.parameters()} == {torch.bfloat16}
    assert run.weights.dtype == run.average.dtype == torch.float32
    assert torch.equal(run.live, run.weights.data.bfloat16())
    # A step this small is lost on most rounded weights, never on the exact ones.
    assert (run.weights != begun).float().mean() > 0.99
    assert (run.live == rounded).float().mean() > 0.1
    advance(run, plan.steps)
    run.finish()
    assert {value.dtype for value in load_file(run.target).values()} == {torch.float32}


@pytest.mark.parametrize("half", [False, True])
def test_parameters_and_gradients_are_views_of_two_vectors(tmp_path, half):
    plan = Plan("views", steps=2, batch=4, learning_rate=0.1, half=half)
    run = start(tmp_path, plan)
    run.live.fill_(0.25)
    run.gradient.fill_(0.5)
    parameters = list(run.task.network.parameters())
    assert all((p == 0.25).all() and (p.grad == 0.5).all() for p in parameters)
    assert sum(p.numel() for p in parameters) == run.weights.numel()


def test_long_gradients_are_cut_to_one_and_short_ones_kept(tmp_path):
    norms = {}
    for scale in (1e-3, 1e3):
        run = TrainingState(Tiny(network(), scale), tmp_path, PLAN)
        run.advance(0, 1, CPU)
        norms[scale] = (run.gradient.norm().item(), run.weights.grad.norm().item())
    raw, cut = norms[1e3]
    assert raw > 10
    assert cut == pytest.approx(1, abs=1e-4)
    raw, kept = norms[1e-3]
    assert raw < 0.1
    assert kept == pytest.approx(raw)


def test_two_processes_that_saw_the_same_are_as_one(tmp_path, monkeypatch):
    alone, together = start(tmp_path), start(tmp_path, Plan(**{**vars(PLAN), "batch": 32}))
    alone.advance(0, 1, CPU)
    monkeypatch.setattr(fitting.dist, "all_reduce", lambda gradient: gradient.mul_(2))
    together.advance(0, 2, CPU)
    assert torch.equal(alone.weights.grad, together.weights.grad)
    assert torch.equal(alone.weights, together.weights)
    other = start(tmp_path, Plan(**{**vars(PLAN), "batch": 32}))
    other.advance(1, 2, CPU)
    assert not torch.equal(alone.weights, other.weights)
