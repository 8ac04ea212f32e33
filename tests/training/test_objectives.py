from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import mse_loss

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.attention_changes import attention_changes
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import View
from diffusers_erase.training.objectives import (
    Compose,
    Keep,
    KeepOutside,
    ShiftGuidance,
    Steer,
    SteerGuidance,
    Sum,
    error,
)
from diffusers_erase.training.recipes import ANTI_EDITING, RECELER, STEREO


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
        denoiser = Denoiser(
            untrained.unet, NoiseSchedule.of(untrained.scheduler), lora.adapter_disabled
        )
        view = View(denoiser, z, torch.tensor([50, 400, 900]), states, {}, torch.arange(3))
        yield SimpleNamespace(view=view, lora=lora, unet=untrained.unet, denoiser=denoiser)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_steer_equals_esd_written_out(view, eta):
    """Both published forms: from the target, and from the concept's own score with eta + 1."""
    v = view.view
    with torch.no_grad(), view.lora.adapter_disabled():
        concept = view.unet(v.z, v.t, v.states["concept"]).sample
        target = view.unet(v.z, v.t, v.states["target"]).sample
    student = view.unet(v.z, v.t, v.states["concept"]).sample
    from_target = mse_loss(student, target - eta * (concept - target))
    from_concept = mse_loss(student, concept - (eta + 1) * (concept - target))
    loss = Steer(eta)({"concept": v})
    assert torch.allclose(loss, from_target, rtol=1e-5)
    assert torch.allclose(loss, from_concept, rtol=1e-5)


def test_steer_with_eta_zero_is_pure_replacement(view):
    v = view.view
    assert torch.allclose(
        Steer(0.0)({"concept": v}), mse_loss(v.student("concept"), v.teacher("target")), rtol=1e-6
    )
    assert not torch.allclose(Steer(0.0)({"concept": v}), Steer(1.0)({"concept": v}))


def test_keep_is_zero_for_the_base_and_only_for_the_base(view):
    v = view.view
    assert Keep("null", at="concept")({"concept": v}) > 1e-4
    with view.lora.adapter_disabled():
        assert Keep("null", at="concept")({"concept": v}) == 0


def test_sum_is_linear_in_its_weights(view):
    views = {"concept": view.view}
    steer, keep = Steer(1.0), Keep("null", at="concept")
    both = Sum(((2.0, steer), (0.5, keep)))(views)
    assert torch.allclose(both, 2 * steer(views) + 0.5 * keep(views))


def test_objectives_have_gradients_for_the_eraser_alone(view):
    Sum(((1.0, Steer()), (1.0, Keep("null", at="concept"))))({"concept": view.view}).backward()
    ours = {id(p) for p in view.lora.parameters}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in view.lora.parameters)
    assert all(p.grad is None for p in view.unet.parameters() if id(p) not in ours)


def test_compose_equals_its_formula_written_out(view):
    v = view.view
    concept, target, null = (v.teacher(role) for role in ("concept", "target", "null"))
    wanted = null + 3 * (concept - null) - 2 * (target - null)
    loss = Compose((("concept", 3.0), ("target", -2.0)), role="null")({"concept": v})
    assert torch.allclose(loss, mse_loss(v.student("null"), wanted), rtol=1e-5)


def test_compose_is_steer_with_weights_of_its_own(view):
    views = {"concept": view.view}
    composed = Compose((("target", 2.5), ("concept", -1.5)))(views)
    assert torch.allclose(composed, Steer(1.5)(views), rtol=1e-4)


def test_anti_editing_begins_at_the_errors_that_its_equations_have_for_the_base(view):
    """Without an anchor's guidance: 9 g² of the empty prompt, (1+3)² g² of the concept, 0 kept."""
    v = view.view.with_role("target", view.view.states["null"])
    guidance = (v.teacher("concept") - v.teacher("null")).square().mean()
    (first, null), (second, concept) = ANTI_EDITING.erase.terms
    ((third, anchor),) = ANTI_EDITING.keep
    assert (first, second, third) == (0.198, 0.002, 0.8)
    with view.lora.adapter_disabled():
        views = {"concept": v}
        assert torch.allclose(null(views), 9 * guidance, rtol=1e-4)
        assert torch.allclose(concept(views), 16 * guidance, rtol=1e-4)
        assert anchor(views) == 0
        total = ANTI_EDITING.loss(keeps=False)(views)
    assert torch.allclose(total, (0.198 * 9 + 0.002 * 16) * guidance, rtol=1e-4)


def test_anti_editing_spares_the_anchor(view):
    """What the anchor shares with the concept stays in the empty prompt's score."""
    v = view.view.with_role("target", view.view.states["concept"])
    (_, null), _ = ANTI_EDITING.erase.terms
    with view.lora.adapter_disabled():
        assert null({"concept": v}) < 1e-8
        assert null({"concept": view.view}) > 1e-4


def test_the_empty_prompt_has_no_gradient_where_it_is_protected(untrained):
    null = encode(untrained, [""])
    states = {"concept": encode(untrained, ["a car"]), "target": encode(untrained, ["a truck"])}
    schedule, sizes = NoiseSchedule.of(untrained.scheduler), []
    z, t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([90])
    for protect in (None, null):
        with attached(
            untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0, protect=protect
        ) as lora:
            denoiser = Denoiser(untrained.unet, schedule, lora.adapter_disabled)
            view = View(denoiser, z, t, {**states, "null": null}, {}, torch.arange(1))
            (_, term), _ = ANTI_EDITING.erase.terms
            gradients = torch.autograd.grad(term({"concept": view}), lora.parameters)
            sizes.append(max(g.abs().max().item() for g in gradients))
    free, held = sizes
    assert held < 1e-4 * free


def test_stereo_goes_from_the_target_away_from_the_mean_of_all_that_was_found(view):
    v = view.view.with_role("adversary", view.view.states["null"] * 2)
    concept, target, word = (v.teacher(role) for role in ("concept", "target", "adversary"))
    wanted = target - ((concept + word) / 2 - target)
    ((weight, answer),) = STEREO.keep
    for term, role in ((STEREO.erase, "concept"), (answer, "adversary")):
        assert torch.allclose(term({"concept": v}), mse_loss(v.student(role), wanted), rtol=1e-4)
    same = v.with_role("adversary", v.states["concept"])
    assert weight == 1
    assert torch.allclose(STEREO.erase({"concept": same}), Steer(1.0)({"concept": v}), rtol=1e-4)


@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_keep_outside_equals_its_formula_written_out(view, threshold):
    v, term = view.view, KeepOutside(threshold)
    apart = (v.teacher("concept") - v.teacher("target")).square().mean(1)
    mask = torch.stack([each > threshold * each.max() for each in apart]).float()
    assert torch.equal(term.mask(v)[:, 0], mask)
    assert (mask.sum() > 0) == (threshold < 1)
    losses = []
    for change in attention_changes(v.denoiser, v.z, v.t, v.states["concept"]):
        side = int(change.shape[1] ** 0.5)
        blocks = mask.reshape(3, side, 16 // side, side, 16 // side)
        outside = [(b, p) for b in range(3) for p in range(side**2)
                   if not blocks[b, p // side, :, p % side].any()]  # fmt: skip
        losses.append(sum(change[b, p].square().mean() for b, p in outside) / len(outside))
    assert torch.allclose(term({"concept": v}), sum(losses) / len(losses), rtol=1e-4)


def test_keep_outside_is_zero_for_the_base_and_where_the_concept_is_everywhere(view):
    v = view.view
    assert KeepOutside()({"concept": v}) > 1e-6
    assert KeepOutside(0.0)({"concept": v}) == 0
    with view.lora.adapter_disabled():
        assert KeepOutside()({"concept": v}) == 0


def test_keep_outside_has_gradients_for_the_eraser(view):
    KeepOutside()({"concept": view.view}).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in view.lora.parameters)


def test_receler_without_soft_tokens_is_esd_with_its_regulariser(view):
    v = view.view.with_role("adversary", view.view.states["concept"])
    esd = Steer(1.0)({"concept": v}) + 0.1 * KeepOutside()({"concept": v})
    assert torch.allclose(RECELER.loss(keeps=False)({"concept": v}), esd, rtol=1e-5)


def test_keep_outside_refuses_thresholds_that_are_no_share():
    with pytest.raises(ErasureError, match=r"`threshold` is in 0 .. 1; got 2"):
        KeepOutside(2)


def test_steer_guidance_equals_its_formula_written_out(view):
    v, eta = view.view, 1.5
    concept, target, null = (v.teacher(role) for role in ("concept", "target", "null"))
    wanted = (target - null) - eta * ((concept - null) - (target - null))
    said = v.student("concept") - v.student("null").detach()
    loss = SteerGuidance(eta)({"concept": v})
    assert torch.allclose(loss, mse_loss(said, wanted), rtol=1e-5)
    assert not torch.allclose(loss, Steer(eta)({"concept": v}), rtol=1e-2)


def test_steer_guidance_moves_the_concept_and_not_the_null_score(view):
    """Its gradient is that of the same loss with the student's null score a constant."""
    v = view.view

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, view.lora.parameters)])

    null = v.student("null").detach()
    guidance = v.teacher("target") - v.teacher("null")
    fixed = gradient(mse_loss(v.student("concept"), null + guidance))
    pulled = gradient(mse_loss(v.student("concept") - v.student("null"), guidance))
    ours = gradient(SteerGuidance(0.0)({"concept": v}))
    assert torch.allclose(ours, fixed, atol=1e-7)
    assert not torch.allclose(ours, pulled, atol=1e-3 * pulled.abs().max())


def test_steer_guidance_is_steer_where_the_null_score_is_protected(untrained):
    """Value and gradient: the constraint makes two papers one."""
    generator = torch.Generator().manual_seed(0)
    states = {r: torch.randn(2, 24, 128, generator=generator) for r in ("concept", "target")}
    states["null"] = encode(untrained, [""]).expand(2, -1, -1)
    schedule = NoiseSchedule.of(untrained.scheduler)
    with attached(
        untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0, protect=states["null"]
    ) as lora:
        for p in lora.parameters:
            torch.nn.init.normal_(p, std=0.2, generator=generator)
        z = torch.randn(2, 4, 16, 16, generator=generator)
        denoiser = Denoiser(untrained.unet, schedule, lora.adapter_disabled)
        views = {"concept": View(denoiser, z, torch.tensor([90, 700]), states, {}, torch.arange(2))}
        for eta in (0.0, 1.0):
            steer, surgical = Steer(eta)(views), SteerGuidance(eta)(views)
            assert torch.allclose(steer, surgical, rtol=1e-4)
            one, two = (torch.autograd.grad(x, lora.parameters) for x in (steer, surgical))
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, two, strict=True))
        assert Keep("null", at="concept")(views) < 1e-10


def test_keep_of_the_null_score_alone_notices_a_drift_of_both_scores(view):
    """Adding d to every student score leaves the surgical loss and costs λ mean d^2."""
    v = view.view

    class Drifted(Denoiser):
        def student(self, z, t, states):
            return super().student(z, t, states) + 0.3

    other = Drifted(view.unet, v.denoiser.schedule, view.lora.adapter_disabled)
    with view.lora.adapter_disabled():  # the student is the base plus d
        views = {"concept": replace(v, denoiser=other)}
        base = {"concept": v}
        assert torch.allclose(SteerGuidance()(views), SteerGuidance()(base), rtol=1e-4)
        assert torch.allclose(Keep("null", at="concept")(views), torch.tensor(0.09), rtol=1e-3)
        assert not torch.allclose(Steer()(views), Steer()(base), rtol=1e-2)


def test_shift_guidance_of_the_bare_concept_replaces_it(view):
    v = view.view
    states = {**v.states, "bare": v.states["concept"], "bare target": v.states["target"]}
    bare = {"concept": replace(v, states=states)}
    assert torch.allclose(
        ShiftGuidance(1.0, 1.0)(bare), SteerGuidance(0.0)({"concept": v}), rtol=1e-5
    )
    prompt = torch.randn(3, 24, 128, generator=torch.Generator().manual_seed(4))
    other = replace(v, states={**states, "concept": prompt})
    null, concept, target = (other.teacher(role) for role in ("null", "bare", "bare target"))
    wanted = other.teacher("concept") - null - 2 * (concept - null) + 0.5 * (target - null)
    said = other.student("concept") - other.student("null")
    loss = ShiftGuidance(2.0, 0.5)({"concept": other})
    assert torch.allclose(loss, mse_loss(said, wanted), rtol=1e-5)
    assert not torch.allclose(loss, SteerGuidance(0.0)({"concept": other}), rtol=1e-4)


def test_error_weighs_times_by_its_space(view):
    v = view.view
    zero, off = torch.zeros_like(v.z), torch.full_like(v.z, 2.0)
    alpha = v.denoiser.schedule.alphas[v.t]
    snr = alpha / (1 - alpha)
    assert torch.allclose(error(v, zero, off, "prediction"), torch.tensor(4.0))
    assert torch.allclose(error(v, zero, off, "x0"), 4 * ((1 - alpha) / alpha).mean(), rtol=1e-4)
    assert torch.allclose(
        error(v, zero, off, "min-snr"), 4 * (snr.clamp(max=5) / snr).mean(), rtol=1e-4
    )
    x0, moved = ((v.z - (1 - v.alpha).sqrt() * e) / v.alpha.sqrt() for e in (zero, off))
    assert torch.allclose(error(v, zero, off, "x0"), mse_loss(x0, moved), rtol=1e-4)


def test_error_in_x0_and_min_snr_does_not_depend_on_the_prediction_type(view):
    """An error d of the clean picture, seen as noise, as v and as itself."""
    v, d = view.view, 0.3
    alpha = v.alpha
    noise, velocity = -alpha.sqrt() / (1 - alpha).sqrt() * d, -d / (1 - alpha).sqrt()
    for space, wanted in (
        ("x0", d**2),
        ("min-snr", d**2 * (alpha / (1 - alpha)).clamp(max=5).mean().item()),
    ):
        for prediction, off in (("epsilon", noise), ("v_prediction", velocity), ("sample", d)):
            schedule = replace(v.denoiser.schedule, prediction=prediction)
            seen = replace(v, denoiser=Denoiser(view.unet, schedule))
            found = error(seen, torch.zeros_like(v.z), torch.ones_like(v.z) * off, space)
            assert found.item() == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    "objective", [Steer, SteerGuidance, ShiftGuidance, Keep, partial(Compose, ())]
)
def test_objectives_refuse_unknown_spaces(objective):
    with pytest.raises(ErasureError, match=r"No `space` .eps.\. Known: prediction, x0, min-snr"):
        objective(space="eps")
