from dataclasses import replace
from itertools import islice, pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_erase.concepts import Vocabulary
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.trajectories import sample_trajectories
from diffusers_erase.training.adversary import LearntWords
from diffusers_erase.training.checkpoints import Checkpoints
from diffusers_erase.training.objectives import Compose, Keep, ShiftGuidance, Steer, Sum
from diffusers_erase.training.recipes import (
    ANTI_EDITING,
    ESD,
    RECIPES,
    Recipe,
    default_recipe,
)
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


def test_train_lowers_the_loss(setting):
    losses = [step.loss for step in loop(setting, 30)]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_train_costs_one_student_pass_a_step_when_all_scores_are_kept(setting):
    denoiser = setting[0]
    before = denoiser.evaluations
    list(loop(setting, 3))
    assert denoiser.evaluations - before == 3 * 4


def test_train_does_no_step_before_it_is_asked_for(setting):
    before = setting[0].evaluations
    assert [step.index for step in islice(loop(setting, 1000), 2)] == [0, 1]
    assert setting[0].evaluations - before == 2 * 4


def test_train_is_determined_by_its_seed(untrained, setting):
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


def test_renewal_trains_on_latents_of_the_student(untrained, setting):
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


def test_recipes_are_listed_by_their_names():
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert ESD.erase == Steer(eta=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps` must be positive; got 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be positive; got nan"),
        ({"keep_weight": float("nan")}, "`keep_weight` must not be negative; got nan"),
        ({"pool": -3}, "`pool` must not be negative; got -3"),
        ({"noised": 4, "refresh": 1}, "`noised` pictures are the base's, and with `refresh`"),
        ({"noised": 2.5}, "`noised` is a number of latents, or 0; got 2.5"),
        ({"noised": -1}, "`noised` is a number of latents, or 0; got -1"),
        ({"refresh": -1}, "`refresh` is a number of steps, or 0; got -1"),
        ({"choose": "nearby"}, r"No `choose` 'nearby'\. Did you mean 'nearest'"),
        ({"sampler": "dpm"}, r"No `sampler` 'dpm'\. Known: ddim, own"),
        (
            {"erase": Keep("target", at="kept")},
            r"No role in the view `kept` 'target'\. Known: conc",
        ),
        ({"erase": ShiftGuidance()}, "No role in the view `concept` 'bare"),
        ({"keep": ((1.0, Keep("nul", at="concept")),)}, r"'nul'\. Did you mean 'null'"),
        ({"keep": ((1.0, Sum(((1.0, Keep(at="keep")),))),)}, "No view in a recipe 'keep'"),
        ({"erase": Compose((("concpet", 1.0),))}, r"'concpet'\. Did you mean 'concept'"),
        ({"erase": ANTI_EDITING.erase, "protect_null": True}, "the empty prompt, and a term of"),
        ({"keep": ((0.1, Steer(role="null")),), "protect_null": True}, "is to change it; leave"),
        ({"parts": ("attn1.to_v", "to_q"), "warm": True}, "edit to_k and to_v, and `parts` have"),
        ({"parts": ("to_out.0",), "choose": "trial"}, "Add one, or set `warm=False`"),
        ({"adversaries": LearntWords()}, r"a tuple of adversaries.* got LearntWords\(every=20"),
        ({"adversaries": (LearntWords,)}, "`adversaries` is a tuple of adversaries"),
        (
            {"adversaries": (LearntWords(every=30, rounds=4),), "steps": 90},
            "`steps` must be more than the 90 of an adversary's search",
        ),
    ],
)
def test_recipes_refuse_what_cannot_be_trained(changes, message):
    with pytest.raises(ErasureError, match=message):
        Recipe("mine", **changes)


def test_recipes_that_leave_the_empty_prompt_alone_may_protect_it():
    changing = {name for name, recipe in RECIPES.items() if recipe.steers_null}
    assert changing == {"anti-editing"}
    assert replace(ESD, protect_null=True).protect_null


@pytest.mark.parametrize(
    ("width", "name"),
    [(128, "surgical-age"), (768, "surgical-age-sd"), ([1024], "surgical-age-sd")],
)
def test_default_recipe_goes_by_the_size_of_the_model(untrained, width, name):
    untrained.unet.register_to_config(cross_attention_dim=width)
    model = Model.of(untrained)
    assert default_recipe(model, Vocabulary(("oak",))) == RECIPES[name]
    assert default_recipe(model, None) == replace(RECIPES[name], choose="given")


class Shift:
    """An adversary in a few lines: a learnt shift of the concept's text states."""

    def __init__(self):
        self.shift = torch.zeros(128)
        self.calls = []

    def __call__(self, step, views):
        self.calls.append(step)
        view = views["concept"]
        return {**views, "concept": view.with_role("concept", view.states["concept"] + self.shift)}

    def learn(self, views, loss, mean):
        shift = torch.zeros(128, requires_grad=True)
        view = views["concept"]
        moved = view.with_role("concept", view.states["concept"] + shift)
        gain = loss({**views, "concept": moved})
        self.shift = self.shift + 0.1 * mean(torch.autograd.grad(gain, shift)[0]).sign()

    def choices(self):
        return ()

    def state(self):
        return {"shift": self.shift}

    def restore(self, state):
        self.shift = state["shift"]


def test_inner_loops_change_the_views_learn_and_are_resumed(setting, tmp_path):
    denoiser, lora, trajectories = setting
    start = [p.detach().clone() for p in lora.parameters]

    def run(folder, steps, stop=None, learns=True):
        for p, value in zip(lora.parameters, start, strict=True):
            p.data.copy_(value)
        loops = (Shift(), Shift()) if learns else ()
        loop = train(
            denoiser, lora.parameters, trajectories, Steer(),
            pace=Pace(steps, batch=4, learning_rate=3e-3, accumulate=2),
            inner=loops, checkpoints=Checkpoints(folder, {}, every=1),
        )  # fmt: skip
        list(islice(loop, stop))
        return torch.cat([p.detach().flatten() for p in lora.parameters]), loops

    whole, (first, second) = run(tmp_path / "whole", 4)
    assert first.calls == second.calls == [0, 0, 1, 1, 2, 2, 3, 3]
    assert first.shift.abs().max() > 0
    alone, _ = run(tmp_path / "alone", 4, learns=False)
    assert not torch.allclose(whole, alone)
    run(tmp_path / "run", 4, stop=2)
    resumed, (again, _) = run(tmp_path / "run", 4)
    assert again.calls == [2, 2, 3, 3]
    assert torch.equal(again.shift, first.shift)
    assert torch.equal(resumed, whole)


class Watch:
    """An inner loop that sees the student's parameters before each step."""

    def __init__(self, parameters):
        self.parameters, self.seen = parameters, []

    def __call__(self, step, views):
        self.seen.append(torch.cat([p.detach().flatten() for p in self.parameters]))
        return views

    def learn(self, views, loss, mean):
        pass

    def choices(self):
        return ()

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_the_student_begins_anew_at_the_restart_and_is_resumed(setting, tmp_path):
    denoiser, lora, trajectories = setting
    start = [p.detach().clone() for p in lora.parameters]
    pace = Pace(6, batch=4, learning_rate=3e-3, accumulate=2, restart=3)

    def run(folder, stop=None):
        for p, value in zip(lora.parameters, start, strict=True):
            p.data.copy_(value)
        watch, after = Watch(lora.parameters), []
        loop = train(
            denoiser, lora.parameters, trajectories, Steer(), pace=pace, inner=(watch,),
            checkpoints=Checkpoints(folder, {}, every=1),
        )  # fmt: skip
        for _ in islice(loop, stop):
            after.append(torch.cat([p.detach().flatten() for p in lora.parameters]))
        return watch.seen[::2], after

    first = torch.cat([p.flatten() for p in start])
    seen, after = run(tmp_path / "whole")
    assert torch.equal(seen[3], after[2])  # the student of the step before
    moved = [(each - first).abs().max().item() for each in after]
    for step in (0, 3):  # Adam's first step moves a parameter by the learning rate
        assert moved[step] == pytest.approx(3e-3, rel=1e-3)
    assert moved[2] > moved[0]
    for stop in (2, 3, 4):
        folder = tmp_path / str(stop)
        run(folder, stop)
        assert torch.equal(run(folder)[1][-1], after[-1])


def test_the_learning_rate_falls_before_the_restart_and_again_after_it():
    pace = Pace(9, 1, 1.0, restart=4)
    rates = [pace.rate(step) for step in range(9)]
    assert rates[0] == rates[4] == 1
    assert all(one > two for part in (rates[:4], rates[4:]) for one, two in pairwise(part))


def test_train_in_half_precision_resumes_with_the_scale_of_its_gradients(setting, tmp_path):
    """The first scale overflows and steps are skipped until it fits: not again after resuming."""
    denoiser, lora, trajectories = setting
    denoiser.unet.half()
    for p in lora.parameters:
        p.data = p.data.float()
    start = [p.detach().clone() for p in lora.parameters]

    def run(folder, stop=None):
        for p, value in zip(lora.parameters, start, strict=True):
            p.data.copy_(value)
        weights = []
        loop = train(
            denoiser, lora.parameters, trajectories, lambda views: 1e5 * Steer()(views),
            pace=Pace(9, batch=4, learning_rate=3e-3), checkpoints=Checkpoints(folder, {}, every=1),
        )  # fmt: skip
        for _ in islice(loop, stop):
            weights.append(torch.cat([p.detach().flatten() for p in lora.parameters]))
        return weights

    whole = run(tmp_path / "whole")
    skipped = [torch.equal(one, two) for one, two in pairwise(whole)]
    assert any(skipped)
    assert not all(skipped)
    for stop in (1, 8):
        run(tmp_path / str(stop), stop)
        assert torch.equal(run(tmp_path / str(stop))[-1], whole[-1])


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_train_lowers_the_loss_where_the_first_latent_is_noise_alone(untrained, prediction):
    """Zero-terminal-SNR schedules, as fine-tunes of Stable Diffusion 2.1 have them."""
    known = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler.from_config(
        untrained.scheduler.config, prediction_type=prediction, **known
    )
    with attached(untrained.unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        denoiser = Denoiser(untrained.unet, NoiseSchedule.of(scheduler), lora.adapter_disabled)
        states, null = encode(untrained, ["a car"]), encode(untrained, [""])
        kept = sample_trajectories(denoiser, scheduler, states, null, steps=3)
        assert NoiseSchedule.of(scheduler).alpha(kept.t[:1]) == 0
        assert all(torch.isfinite(value).all() for value in kept.tensors().values())
        kept = kept.remember(denoiser, "target", encode(untrained, ["an oak"]))
        first = replace(kept, **{k: getattr(kept, k)[:1] for k in ("z", "t", "prompt")}, scores={})
        pace = Pace(25, batch=2, learning_rate=1e-2)
        for space in ("prediction", "x0", "min-snr"):
            views = {"concept": kept.at(denoiser, torch.arange(3))}
            assert torch.isfinite(Steer(space=space)(views))
        losses = [
            step.loss
            for step in train(denoiser, lora.parameters, {"concept": first}, Steer(), pace=pace)
        ]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
