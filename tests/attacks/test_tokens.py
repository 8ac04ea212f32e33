from dataclasses import replace

import pytest
import torch

from diffusers_erase import ErasureError, load_erasure
from diffusers_erase.attacks.attack_run import draw_cases
from diffusers_erase.attacks.sampling import equal_budget, picture_cost
from diffusers_erase.attacks.tokens import Prefixes, TokenSearch, onto_simplex
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.detector import FromFunction
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.making.api import erase
from diffusers_erase.models.denoising_loss import encode_pictures
from diffusers_erase.models.model import Model


def onto_simplex_by_bisection(v):
    """max(v - θ, 0) with the θ at which it sums to 1, by halving an interval."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (v - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (v - (low + high) / 2).clamp(min=0)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
def test_onto_simplex_is_the_nearest_point_of_the_simplex(spread):
    generator = torch.Generator().manual_seed(0)
    v = spread * torch.randn(20, 30, generator=generator, dtype=torch.float64)
    w = onto_simplex(v)
    assert torch.allclose(w, torch.stack([onto_simplex_by_bisection(row) for row in v]), atol=1e-12)
    assert torch.allclose(onto_simplex(w), w, atol=1e-12)
    assert w.min() >= 0
    assert not torch.allclose(v.sum(1), torch.ones(20, dtype=v.dtype))


def test_onto_simplex_of_a_whole_vocabulary_sums_to_one_in_single_precision():
    v = torch.full((3, 49_408), 1 / 49_408) + 1e-3 * torch.randn(
        3, 49_408, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(onto_simplex(v).double().sum(1), torch.ones(3).double(), atol=1e-6)


@pytest.fixture
def search(playground, judge, cases):
    sampler = PipelineSampler(playground, judge, Sampling(steps=5))
    clean = encode_pictures(playground, draw_cases(sampler, cases))
    prefixes = Prefixes(playground, [case.prompt for case in cases], 2, seeds=[0, 1, 2])
    return playground, prefixes, clean


def test_prefixes_lower_the_loss_and_stay_on_the_simplex(search):
    """Empty prompts, so that prefixes can describe the picture."""
    pipe, _, clean = search
    prefixes = Prefixes(pipe, [""] * 3, 2, seeds=[0, 1, 2])
    left, t = [0, 1, 2], torch.full((3,), 600)
    noise = prefixes.normal(left, clean)
    start = [row.detach().clone() for row in prefixes.rows]
    predictor = Model.of(pipe).noise_predictor()
    losses = [sum(prefixes.improve(predictor, left, clean, t, noise)) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    for row, former in zip(prefixes.rows, start, strict=True):
        assert row.min() >= 0
        assert torch.allclose(row.sum(1), torch.ones(2), atol=1e-6)
        assert not torch.equal(row, former)


def test_prefixes_of_one_prompt_do_not_depend_on_the_others(search):
    pipe, prefixes, clean = search
    alone = Prefixes(pipe, ["a red car at night"], 2, seeds=[1])
    t = torch.tensor([300])
    predictor = Model.of(pipe).noise_predictor()
    for _ in range(2):
        for each, left, latents in ((prefixes, [1], clean), (alone, [0], clean[1:2])):
            noise = each.normal(left, latents)
            each.improve(predictor, left, latents, t, noise)
    assert torch.equal(prefixes.rows[1], alone.rows[0])
    assert torch.equal(prefixes.rows[0], prefixes.rows[2])
    assert not torch.equal(prefixes.rows[0], prefixes.rows[1])
    assert torch.equal(prefixes.ids([1]), alone.ids([0]))


def test_token_search_skips_prompts_that_are_hits_without_it(sampler, cases):
    always = replace(sampler, detector=FromFunction(lambda picture: "car"))
    for attempt in TokenSearch(2, 2, 2)(always, cases):
        assert attempt.before
        assert attempt.images == 0
        assert attempt.evaluations == picture_cost(sampler.sampling)


def test_token_search_stops_at_its_first_success(sampler, cases):
    pictures = []

    def from_the_second_on(picture):
        pictures.append(picture)
        return "car" if len(pictures) > len(cases) else "truck"

    detector = FromFunction(from_the_second_on)
    for attempt in TokenSearch(2, 2, 5)(replace(sampler, detector=detector), cases):
        assert (attempt.before, attempt.after, attempt.found, attempt.images) == (0, 1, 1, 1)
        assert attempt.evaluations == 2 * picture_cost(sampler.sampling) + 3 * 2
        assert attempt.artefact.split()[0] in ("prompt", "ids")


def test_token_search_refuses_no_tokens():
    with pytest.raises(ErasureError, match="`k`, `iterations` and `timesteps` of 1 or more"):
        TokenSearch(k=0)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [None, "base"])
def test_token_search_finds_more_than_a_seed_search_of_equal_budget(playground, judge, reference):
    eraser = erase(playground, Concept("truck"), recipe="closed-form", progress=False, check=False)
    load_erasure(playground, eraser, strength=0.6)
    sampler = PipelineSampler(playground, judge, Sampling(steps=10))
    cases = [
        PromptCase("target", f"a photo of a {colour} truck", ("truck",), seed)
        for seed, colour in enumerate(("red", "blue", "green", "yellow"), 500_000)
    ]
    attack = TokenSearch(iterations=10, timesteps=10, reference=reference)
    found = run_attack(attack, sampler, cases)
    control = run_attack(equal_budget(found, sampler.sampling), sampler, cases)
    assert found.pre.hits == 0
    assert found.lift(control) > 0


@pytest.mark.slow
def test_token_search_finds_nothing_in_an_untrained_model(untrained, judge, cases):
    sampler = PipelineSampler(untrained, judge, Sampling(steps=10))
    found = run_attack(TokenSearch(iterations=5, timesteps=5), sampler, cases)
    assert found.post.hits == 0
