"""Kept latents are drawn by how much the eraser in training has changed their scores."""

from types import SimpleNamespace

import pytest
import torch

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.training.hard_examples import HardExamples
from diffusers_erase.training.objectives import Keep
from diffusers_erase.training.trainer import Pace, train


@pytest.fixture
def context(untrained):
    """Three kept prompts, four latents each."""
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(
            untrained.unet, NoiseSchedule.of(untrained.scheduler), lora.adapter_disabled
        )
        states = encode(untrained, ["a van", "an oak", "a church"]), encode(untrained, [""])
        kept = sample_trajectories(denoiser, untrained.scheduler, *states, steps=4)
        yield SimpleNamespace(denoiser=denoiser, kept=kept, lora=lora)


def views(context, rows):
    return {"kept": context.kept.at(context.denoiser, rows), "concept": None}


def counts(context, loop, step=0):
    """How many of many latents are of each prompt, of 600 that all were of the first."""
    drawn = loop(step, views(context, torch.zeros(600, dtype=torch.long)))["kept"]
    owners = context.kept.prompt[drawn.rows]
    assert torch.equal(drawn.z, context.kept.z[drawn.rows])
    return torch.bincount(owners, minlength=3).tolist()


def test_prompts_are_drawn_in_proportion_to_their_errors(context):
    loop = HardExamples(every=10, latents=4, share=0.5).begin(context, seed=0)
    generator = torch.Generator().manual_seed(1)
    for p in context.lora.parameters:
        p.data = 0.1 * torch.randn(p.shape, generator=generator)
    first, second, third = counts(context, loop)
    rows = torch.arange(12)
    view = context.kept.at(context.denoiser, rows)
    with torch.no_grad():
        each = (view.student("concept") - view.teacher("concept")).square().mean((1, 2, 3))
    errors = torch.stack([each[context.kept.prompt == p].mean() for p in range(3)])
    assert torch.allclose(loop.errors, errors, rtol=1e-3)
    shares = errors / errors.sum()
    assert [first - 300, second, third] == pytest.approx((300 * shares).tolist(), abs=50)
    loop.errors = torch.tensor([0.0, 0.0, 1.0])
    assert counts(context, loop, step=3)[1] == 0  # measured anew at step 10 only
    assert counts(context, loop, step=10)[1] > 0


def test_nothing_changes_without_kept_prompts_or_with_a_share_of_0(context):
    rows = torch.arange(12)
    none = HardExamples(share=0.0).begin(context, seed=0)
    assert torch.equal(none(0, views(context, rows))["kept"].rows, rows)
    bare = SimpleNamespace(denoiser=context.denoiser, kept=None)
    given = {"concept": None}
    assert HardExamples().begin(bare, seed=0)(0, given) is given


def test_a_run_that_diverged_reaches_the_loss_that_says_so(context):
    loop = HardExamples(every=1, latents=1).begin(context, seed=0)
    for p in context.lora.parameters:
        p.data = torch.full_like(p, torch.nan)
    assert sum(counts(context, loop)) == 600
    assert not loop.errors.isfinite().any()


def test_a_resumed_run_draws_the_same(context):
    def loop():
        return HardExamples(every=2, latents=1).begin(context, seed=0)

    def run(inner, steps):
        pace = Pace(steps=steps, batch=4, learning_rate=1e-2)
        options = {"pace": pace, "inner": (inner,)}
        runs = {"kept": context.kept}
        for _ in train(context.denoiser, context.lora.parameters, runs, Keep(), **options):
            pass

    for p in context.lora.parameters:
        p.data = torch.full_like(p, 0.1)
    whole = loop()
    run(whole, 3)
    resumed = loop()
    resumed.restore(whole.state())
    assert counts(context, resumed, step=3) == counts(context, whole, step=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "`every` is a number of 1 or more; got 0"),
        ({"latents": 1.5}, "`latents` is a number of 1 or more; got 1.5"),
        ({"share": "all"}, "`share` is in 0 .. 1; got 'all'"),
        ({"share": 1.1}, r"`share` is in 0 .. 1; got 1.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ErasureError, match=message):
        HardExamples(**settings)
