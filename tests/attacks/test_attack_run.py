from dataclasses import replace

import pytest
import torch

from diffusers_erase import ErasureError, erasures_disabled, load_erasure
from diffusers_erase.attacks.attack_run import (
    GIVEN_SEEDS,
    SEARCH_SEEDS,
    attack_run,
    base_model,
    base_pictures,
    draw_cases,
    draw_from_states,
    nth_seed,
)
from diffusers_erase.runtime.plugin import erasures_key


def pixels(pictures):
    return [picture.tobytes() for picture in pictures]


def test_attack_run_shares_evaluations_to_the_last_one(sampler, cases):
    with attack_run(sampler, cases) as run:
        first = [a.evaluations for a in run.attempts]
        with run.charged_to([0, 1, 2]):
            unet, z = sampler.pipe.unet, torch.zeros(5, 4, 16, 16)
            with torch.no_grad():
                unet(z, torch.tensor(1), torch.zeros(5, 24, 32))
        later = [a.evaluations for a in run.attempts]
    assert [now - then for now, then in zip(later, first, strict=True)] == [2, 2, 1]


def test_attack_run_counts_attempts_and_not_controls(sampler, blind, cases):
    with attack_run(replace(sampler, detector=blind), cases) as run:
        pictures = draw_cases(sampler, cases)
        run.hits(run.rows, pictures, "control")
        assert [a.images for a in run.attempts] == [0, 0, 0]
        assert run.attempt([1], lambda: pictures[:1], "attack") == [False]
        assert run.attempt([], lambda: pytest.fail("nothing to draw")) == []
    attempts = run.attempts
    assert [a.images for a in attempts] == [0, 1, 0]
    assert [list(a.curve) for a in attempts] == [["control"], ["control", "attack"], ["control"]]


def test_attack_run_refuses_no_cases(sampler):
    with pytest.raises(ErasureError, match="No prompt to attack"), attack_run(sampler, []):
        pass


def test_base_model_disables_erasers_also_where_they_are_disabled(untrained, make_eraser):
    load_erasure(untrained, make_eraser(untrained.unet))
    with base_model(untrained):
        assert erasures_key(untrained) == []
    with erasures_disabled(untrained), base_model(untrained):
        assert erasures_key(untrained) == []
    assert len(erasures_key(untrained)) == 1


def test_base_pictures_are_those_without_the_eraser(sampler, untrained, make_eraser, cases):
    before = pixels(draw_cases(sampler, cases))
    load_erasure(untrained, make_eraser(untrained.unet, scale=0.5))
    assert pixels(draw_cases(sampler, cases)) != before
    assert pixels(base_pictures(sampler, cases)) == before


def test_draw_from_states_of_prompts_draws_the_prompts_pictures(sampler, cases):
    states = sampler.model.encode([case.prompt for case in cases])
    drawn = draw_from_states(sampler, states, [case.seed for case in cases])
    assert pixels(drawn) == pixels(draw_cases(sampler, cases))


def test_nth_seed_never_repeats_a_seed_of_neighbouring_cases():
    seeds = {
        nth_seed(seed, n) for seed in range(100) for n in (*range(50), GIVEN_SEEDS, SEARCH_SEEDS)
    }
    assert len(seeds) == 100 * 52
    assert nth_seed(7, 0) == 7
