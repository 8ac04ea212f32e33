"""Properties of every attack."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusers_erase import ErasureError, erasures_disabled, load_erasure
from diffusers_erase.attacks import ATTACKS, attack_named
from diffusers_erase.attacks.image_editing import DDIMInversion, ImageToImage
from diffusers_erase.attacks.inversion import Inversion, StateInversion
from diffusers_erase.attacks.relearning import Relearning
from diffusers_erase.attacks.ring_a_bell import EmbeddingShift, RingABell
from diffusers_erase.attacks.sampling import Completion, Noise, Paraphrases, SeedSearch
from diffusers_erase.attacks.tokens import TokenSearch
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.detector import FromFunction
from diffusers_erase.playground.building import networks
from diffusers_erase.runtime.plugin import erasures_key, list_erasures


PICTURE = 2 * 2
"""Evaluations of a picture: two steps with guidance."""

SMALL = {
    "paraphrases": (Paraphrases(("a picture of {}", "{}, {}")), 2 * PICTURE),
    "seed-search": (SeedSearch(3), 2 * PICTURE),
    "noise": (Noise((0.5, 1.85), (1.0,)), 2 * PICTURE),
    "completion": (Completion((1, 2)), 2 * PICTURE),
    "embedding-shift": (EmbeddingShift((1.0,)), PICTURE),
    "image-to-image": (ImageToImage((0.5, 1.0)), PICTURE // 2 + PICTURE),
    "ddim-inversion": (DDIMInversion(), 2 + PICTURE),
    "tina": (DDIMInversion(iterations=3, text=False), 2 * (1 + 3) + PICTURE // 2),
    "token-search": (TokenSearch(k=2, iterations=3, timesteps=2), 2 * (3 * 3 + PICTURE)),
    "p4d": (TokenSearch(2, 3, 2, reference="base"), 2 * (3 * (3 + 1) + PICTURE)),
    "inversion": (Inversion(steps=2, batch=3, pictures=2), 2 * 3 * 3 // 3 + PICTURE),
    "state-inversion": (StateInversion(steps=2, batch=3, pictures=2), 2 * 3 * 3 + PICTURE),
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
"""A small version of each attack, and its evaluations per case beyond the first picture."""


@pytest.fixture(params=SMALL)
def attack(request):
    found, _ = SMALL[request.param]
    assert found.name == request.param
    return found


@pytest.fixture(scope="module")
def known():
    """Attempts on the base by the name of the attack."""
    return {}


@pytest.fixture
def on_the_base(known, small_parts, sampler, cases, attack):
    """The attack's attempts on a pipeline without erasers, made once."""
    if attack.name not in known:
        pipe = networks.assemble(**{**small_parts, "unet": copy.deepcopy(small_parts["unet"])})
        pipe.set_progress_bar_config(disable=True)
        known[attack.name] = attack(replace(sampler, pipe=pipe), cases)
    return known[attack.name]


@pytest.fixture
def erased(untrained, make_eraser):
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5))
    return untrained


def networks_of(pipe):
    return (pipe.unet, pipe.text_encoder, pipe.vae)


def state_of(pipe):
    """All that an attack could leave changed."""
    weights = [v.clone() for part in networks_of(pipe) for v in part.state_dict().values()]
    modules = [module for part in networks_of(pipe) for module in part.modules()]
    return weights, {
        "modules": [id(module) for module in modules],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "modes": [module.training for module in modules],
        "trainable": [p.requires_grad for part in networks_of(pipe) for p in part.parameters()],
        "gradients": [p.grad for part in networks_of(pipe) for p in part.parameters()],
        "erasers": (erasures_key(pipe), list(list_erasures(pipe))),
        "scheduler": (id(pipe.scheduler), repr(vars(pipe.scheduler))),
        "tokens": len(pipe.tokenizer),
        "parts": {name: id(part) for name, part in pipe.components.items()},
        "random state": torch.get_rng_state().tolist(),
    }


def assert_same(now, then):
    assert all(map(torch.equal, now[0], then[0]))
    assert now[1] == then[1]


def test_attacks_registry_has_every_attack_by_its_name():
    assert list(ATTACKS) == list(SMALL)
    assert all(attack.name == name for name, attack in ATTACKS.items())
    assert {attack.access for attack in ATTACKS.values()} == {"sampler", "white box", "fine-tune"}


def test_attack_named_sets_the_concept_of_attacks_that_take_one():
    car = Concept("car")
    assert attack_named("inversion", car).concept == car
    assert attack_named("noise", car) is ATTACKS["noise"]


def test_attack_named_suggests_the_nearest_names():
    with pytest.raises(
        ErasureError, match=r"Did you mean 'token-search' or .*\? Known: paraphrases"
    ):
        attack_named("token-serch")


@pytest.mark.parametrize("name", SMALL)
def test_attack_counts_its_evaluations_and_leaves_the_pipeline_unchanged(
    sampler, erased, blind, cases, name
):
    attack, evaluations = SMALL[name]
    before = state_of(erased)
    attempts = attack(replace(sampler, detector=blind), cases)
    assert_same(state_of(erased), before)
    assert [a.evaluations for a in attempts] == [PICTURE + evaluations] * len(cases)
    assert [(a.prompt, a.wanted, a.seed) for a in attempts] == [
        (a.prompt, a.wanted, a.seed) for a in cases
    ]
    assert not any(a.before or a.after or a.found or a.artefact for a in attempts)
    assert all(a.images > 0 for a in attempts)


def test_attack_on_an_eraser_of_strength_zero_equals_that_on_the_base(
    sampler, untrained, make_eraser, cases, attack, on_the_base
):
    """So every attack is deterministic too."""
    load_erasure(untrained, make_eraser(untrained.unet), strength=0.0)
    assert attack(sampler, cases) == on_the_base


def test_attack_within_erasures_disabled_equals_that_on_the_base(
    sampler, erased, cases, attack, on_the_base
):
    with erasures_disabled(erased):
        assert attack(sampler, cases) == on_the_base


@pytest.mark.parametrize("judgements", [0, 1])
def test_attack_leaves_the_pipeline_unchanged_after_an_error_of_the_detector(
    sampler, erased, cases, attack, judgements
):
    pictures, one = [], cases[:1]

    def failing(picture):
        pictures.append(picture)
        if len(pictures) > judgements:
            raise RuntimeError("no light")
        return "truck"

    before = state_of(erased)
    with pytest.raises(ErasureError, match="no light"):
        attack(replace(sampler, detector=FromFunction(failing)), one)
    assert_same(state_of(erased), before)


@pytest.mark.parametrize("calls", [4, 5, 7])
def test_attack_leaves_the_pipeline_unchanged_after_an_error_of_the_model(
    sampler, erased, blind, cases, attack, calls, monkeypatch
):
    """A hit in the picture without the attack, in a picture of the base, or later."""
    forward, left, before = erased.unet.forward, [calls], state_of(erased)

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(erased.unet, "forward", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            attack(replace(sampler, detector=blind), cases)
    assert_same(state_of(erased), before)


def test_attack_leaves_a_pipeline_in_half_precision(
    sampler, small_parts, make_eraser, cases, attack
):
    half = {
        name: copy.deepcopy(part).to(torch.bfloat16) if isinstance(part, nn.Module) else part
        for name, part in small_parts.items()
    }
    pipe = networks.assemble(**half)
    pipe.set_progress_bar_config(disable=True)
    load_erasure(pipe, make_eraser(pipe.unet))
    (_,) = attack(replace(sampler, pipe=pipe), cases[:1])
    assert {part.dtype for part in networks_of(pipe)} == {torch.bfloat16}


def test_attack_succeeds_where_a_picture_shows_a_wanted_label(sampler, erased, cases, attack):
    for attempt in attack(sampler, cases):
        assert attempt.after == (attempt.before or attempt.found > 0)
        assert 0 <= attempt.found <= attempt.images
        assert "car" not in attempt.artefact


def test_attack_refuses_no_cases(sampler, attack):
    with pytest.raises(ErasureError, match="No prompt to attack"):
        attack(sampler, [])
