from dataclasses import replace

import pytest
import torch

from diffusers_erase import ErasureError, load_erasure
from diffusers_erase.attacks.attack_run import drawn
from diffusers_erase.attacks.sampling import equal_budget, picture_cost
from diffusers_erase.attacks.tokens import Prefixes, TokenSearch, onto_simplex
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.detector import FromFunction
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoising_loss import latents_of
from diffusers_erase.models.model import Model


def bisected(v):
    """The θ with Σ max(v - θ, 0) = 1, by halving."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (v - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (v - (low + high) / 2).clamp(min=0)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
def test_the_projection_is_the_nearest_point_of_the_simplex(spread):
    generator = torch.Generator().manual_seed(0)
    v = spread * torch.randn(20, 30, generator=generator, dtype=torch.float64)
    w = onto_simplex(v)
    assert torch.allclose(w, torch.stack([bisected(row) for row in v]), atol=1e-12)
    assert torch.allclose(onto_simplex(w), w, atol=1e-12)
    assert w.min() >= 0
    assert not torch.allclose(v.sum(1), torch.ones(20, dtype=v.dtype))


def test_a_whole_vocabulary_stays_on_the_simplex_in_single_precision():
    v = torch.full((3, 49_408), 1 / 49_408) + 1e-3 * torch.randn(
        3, 49_408, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(onto_simplex(v).double().sum(1), torch.ones(3).double(), atol=1e-6)


@pytest.fixture
def search(playground, judge, asked):
    sampler = PipelineSampler(playground, judge, Sampling(steps=5))
    clean = latents_of(playground, drawn(sampler, asked))
    prefixes = Prefixes(playground, [a.prompt for a in asked], 2, seeds=[0, 1, 2])
    return playground, prefixes, clean


def test_the_loss_falls_and_rows_stay_on_the_simplex(search):
    """Prompts that say nothing of the picture, so that there is something to be found."""
    pipe, _, clean = search
    prefixes = Prefixes(pipe, [""] * 3, 2, seeds=[0, 1, 2])
    left, t = [0, 1, 2], torch.full((3,), 600)
    noise = prefixes.normal(left, clean)
    start = [row.detach().clone() for row in prefixes.rows]
    losses = [
        sum(prefixes.improve(Model.of(pipe).noise_predictor(), left, clean, t, noise))
        for _ in range(40)
    ]
    assert sum(losses[-10:]) < sum(losses[:10])
    for row, former in zip(prefixes.rows, start, strict=True):
        assert row.min() >= 0
        assert torch.allclose(row.sum(1), torch.ones(2), atol=1e-6)
        assert not torch.equal(row, former)


def test_prompts_that_are_done_are_left_alone_and_others_do_not_notice(search):
    pipe, prefixes, clean = search
    alone = Prefixes(pipe, ["a red car at night"], 2, seeds=[1])
    t = torch.tensor([300])
    denoiser = Model.of(pipe).noise_predictor()
    for _ in range(2):
        for each, left, latents in ((prefixes, [1], clean), (alone, [0], clean[1:2])):
            noise = each.normal(left, latents)
            each.improve(denoiser, left, latents, t, noise)
    assert torch.equal(prefixes.rows[1], alone.rows[0])
    assert torch.equal(prefixes.rows[0], prefixes.rows[2])
    assert not torch.equal(prefixes.rows[0], prefixes.rows[1])
    assert torch.equal(prefixes.ids([1]), alone.ids([0]))


def test_what_is_shown_without_an_attack_is_not_attacked(sampler, asked):
    seeing = replace(sampler, detector=FromFunction(lambda picture: "car"))
    for attempt in TokenSearch(2, 2, 2)(seeing, asked):
        assert attempt.before
        assert attempt.images == 0
        assert attempt.evaluations == picture_cost(sampler.sampling)


def test_the_search_stops_at_its_first_success(sampler, asked):
    pictures = []

    def second(picture):
        pictures.append(picture)
        return "car" if len(pictures) > len(asked) else "truck"

    found = TokenSearch(2, 2, 5)(replace(sampler, detector=FromFunction(second)), asked)
    for attempt in found:
        assert (attempt.before, attempt.after, attempt.found, attempt.images) == (0, 1, 1, 1)
        assert attempt.evaluations == 2 * picture_cost(sampler.sampling) + 3 * 2
        assert attempt.artefact.split()[0] in ("prompt", "ids")


def test_a_search_of_nothing_is_refused():
    with pytest.raises(ErasureError, match="1 token, iteration and time or more"):
        TokenSearch(k=0)


@pytest.fixture
def weakly(playground, judge):
    """An eraser that hides a car from some seeds and no more."""
    eraser = erase(playground, Concept("car"), recipe="closed-form", progress=False)
    load_erasure(playground, eraser, strength=0.7)
    asked = [
        PromptCase("target", prompt, ("car",), seed)
        for seed, prompt in enumerate(p.text for p in Concept("car").example_prompts(6))
    ]
    return PipelineSampler(playground, judge, Sampling(steps=10)), asked[1:]


@pytest.mark.slow
@pytest.mark.parametrize("reference", [None, "base"])
def test_a_weak_eraser_is_broken_more_often_than_by_luck(weakly, reference):
    sampler, asked = weakly
    attack = TokenSearch(iterations=10, timesteps=10, reference=reference)
    found = run_attack(attack, sampler, asked)
    assert found.pre.value < 0.5
    assert found.post.value > 0.5
    assert found.lift(run_attack(equal_budget(found, sampler.sampling), sampler, asked)) >= 0


@pytest.mark.slow
def test_nothing_is_found_in_a_model_that_was_never_taught(untrained, judge, asked):
    sampler = PipelineSampler(untrained, judge, Sampling(steps=10))
    found = run_attack(TokenSearch(iterations=5, timesteps=5), sampler, asked)
    assert found.post.hits == 0
