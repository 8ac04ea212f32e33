"""What holds of every attack."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusers_erase import ErasureError, erasures_disabled, load_erasure
from diffusers_erase.attacks.image_editing import DDIMInversion, ImageToImage
from diffusers_erase.attacks.inversion import Inversion
from diffusers_erase.attacks.relearning import Relearning
from diffusers_erase.attacks.ring_a_bell import EmbeddingShift, RingABell
from diffusers_erase.attacks.sampling import Completion, Noise, Paraphrases, SeedSearch
from diffusers_erase.attacks.tokens import TokenSearch
from diffusers_erase.evaluation.detector import FromFunction
from diffusers_erase.playground.building import networks
from diffusers_erase.runtime.plugin import erasures_key, list_erasures


PICTURE = 2 * 2
"""Evaluations: two steps, with guidance."""

SMALL = {
    "paraphrases": (Paraphrases(("a picture of {}", "{}, {}")), 2 * PICTURE),
    "seed-search": (SeedSearch(3), 2 * PICTURE),
    "noise": (Noise((0.5, 1.85), (1.0,)), 2 * PICTURE),
    "completion": (Completion((1, 2)), 2 * PICTURE),
    "embedding-shift": (EmbeddingShift((1.0,)), PICTURE),
    "image-to-image": (ImageToImage((0.5, 1.0)), PICTURE // 2 + PICTURE),
    "ddim-inversion": (DDIMInversion(), 2 + PICTURE),
    "token-search": (TokenSearch(k=2, iterations=3, timesteps=2), 2 * (3 * 3 + PICTURE)),
    "p4d": (TokenSearch(2, 3, 2, reference="base"), 2 * (3 * (3 + 1) + PICTURE)),
    "inversion": (Inversion(steps=2, batch=3, pictures=2), 2 * 3 * 3 // 3 + PICTURE),
    "ring-a-bell": (RingABell(length=3, population=4, generations=2), PICTURE),
    "relearning": (
        Relearning((0, 1, 2), pictures=2, batch=3),
        2 * 3 * 3 // 3 + 2 * PICTURE,
    ),
    "relearning-target": (
        Relearning((2,), "target", pictures=2, batch=3),
        2 * 3 * 3 // 3 + PICTURE,
    ),
}
"""A small one of each, and its evaluations a prompt, of three, beside the picture without it."""


@pytest.fixture(params=SMALL)
def attack(request):
    found, _ = SMALL[request.param]
    assert found.name == request.param
    return found


@pytest.fixture
def erased(untrained, make_eraser):
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5))
    return untrained


def parts_of(pipe):
    return (pipe.unet, pipe.text_encoder, pipe.vae)


def state_of(pipe):
    """All that an attack might leave otherwise than it found it."""
    weights = [v.clone() for part in parts_of(pipe) for v in part.state_dict().values()]
    modules = [module for part in parts_of(pipe) for module in part.modules()]
    return weights, {
        "modules": [id(module) for module in modules],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "modes": [module.training for module in modules],
        "trainable": [p.requires_grad for part in parts_of(pipe) for p in part.parameters()],
        "gradients": [p.grad for part in parts_of(pipe) for p in part.parameters()],
        "erasers": (erasures_key(pipe), list(list_erasures(pipe))),
        "scheduler": (id(pipe.scheduler), repr(vars(pipe.scheduler))),
        "tokens": len(pipe.tokenizer),
        "parts": {name: id(part) for name, part in pipe.components.items()},
        "chance": torch.get_rng_state().tolist(),
    }


def assert_same(now, then):
    assert all(map(torch.equal, now[0], then[0]))
    assert now[1] == then[1]


@pytest.mark.parametrize("name", SMALL)
def test_the_budget_is_counted_to_the_evaluation_and_all_is_left_as_it_was(
    sampler, erased, blind, asked, name
):
    attack, budget = SMALL[name]
    before = state_of(erased)
    attempts = attack(replace(sampler, detector=blind), asked)
    assert_same(state_of(erased), before)
    assert [a.evaluations for a in attempts] == [PICTURE + budget] * len(asked)
    assert [(a.prompt, a.wanted, a.seed) for a in attempts] == [
        (a.prompt, a.wanted, a.seed) for a in asked
    ]
    assert not any(a.before or a.after or a.found or a.artefact for a in attempts)
    assert all(a.images > 0 for a in attempts)


def test_an_eraser_that_does_nothing_is_attacked_as_the_base_is(
    sampler, untrained, make_eraser, asked, attack
):
    """And so every attack does the same again under the same seed."""
    without = attack(sampler, asked)
    load_erasure(untrained, make_eraser(untrained.unet), strength=0.0)
    assert attack(sampler, asked) == without


def test_the_positive_control_runs_where_the_erasers_are_disabled(sampler, erased, asked, attack):
    with erasures_disabled(erased):
        control = attack(sampler, asked)
    erased.unload_erasures()
    assert control == attack(sampler, asked)


@pytest.mark.parametrize("judgements", [0, 1])
def test_all_is_as_it_was_after_an_error_of_the_detector(
    sampler, erased, asked, attack, judgements
):
    pictures = []

    def failing(picture):
        pictures.append(picture)
        if len(pictures) > judgements * len(asked):
            raise RuntimeError("no light")
        return "truck"

    before = state_of(erased)
    with pytest.raises(ErasureError, match="no light"):
        attack(replace(sampler, detector=FromFunction(failing)), asked)
    assert_same(state_of(erased), before)


@pytest.mark.parametrize("calls", [4, 5, 7])
def test_all_is_as_it_was_after_an_error_of_the_model(
    sampler, erased, blind, asked, attack, calls, monkeypatch
):
    """While the first picture of the attack is drawn, of the base or not, or further on."""
    forward, left, before = erased.unet.forward, [calls], state_of(erased)

    def failing(*given, **options):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory")
        return forward(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(erased.unet, "forward", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            attack(replace(sampler, detector=blind), asked)
    assert_same(state_of(erased), before)


def test_a_pipeline_in_half_precision_stays_in_it(sampler, small_parts, make_eraser, asked, attack):
    half = {
        name: copy.deepcopy(part).to(torch.bfloat16) if isinstance(part, nn.Module) else part
        for name, part in small_parts.items()
    }
    pipe = networks.assemble(**half)
    pipe.set_progress_bar_config(disable=True)
    load_erasure(pipe, make_eraser(pipe.unet))
    found = attack(replace(sampler, pipe=pipe), asked)
    assert len(found) == len(asked)
    assert {part.dtype for part in parts_of(pipe)} == {torch.bfloat16}


def test_a_success_is_what_the_pictures_show(sampler, erased, asked, attack):
    for attempt in attack(sampler, asked):
        assert attempt.after == (attempt.before or attempt.found > 0)
        assert 0 <= attempt.found <= attempt.images
        assert "car" not in attempt.artefact


def test_nothing_asked_for_is_refused(sampler, attack):
    with pytest.raises(ErasureError, match="no prompt to attack"):
        attack(sampler, [])
