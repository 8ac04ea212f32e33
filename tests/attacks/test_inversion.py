from dataclasses import replace

import pytest
import torch
from PIL import Image

from diffusers_erase import ErasureError, load_erasure
from diffusers_erase.attacks.inversion import (
    Inversion,
    LearntWord,
    StateInversion,
    invert,
    invert_states,
    template_of,
)
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import run_attack
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.making.api import erase
from diffusers_erase.models.embedding_hooks import token_embeddings
from diffusers_erase.models.text_states import encode
from diffusers_erase.storage.tensor_cache import digest


TEMPLATES = ["a photo of a {}", "a red {} at night"]


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]


@pytest.mark.parametrize(
    ("prompt", "template"),
    [
        ("a red car at night", "a red {} at night"),
        ("an automobile", "an {}"),
        ("a car beside a car", "a {} beside a"),
        ("a vehicle on four wheels", "a vehicle on four wheels {}"),
        ("", "{}"),
    ],
)
def test_template_of_replaces_the_first_name_of_the_concept(prompt, template):
    assert template_of(prompt, Concept("car", synonyms=("automobile",))) == template


def test_learnt_word_with_the_embedding_of_a_token_has_the_text_states_of_that_token(untrained):
    tokens = untrained.tokenizer("car", add_special_tokens=False).input_ids
    vectors = untrained.text_encoder.get_input_embeddings().weight[tokens].detach()
    found = LearntWord(vectors, (), 0).states(untrained, TEMPLATES)
    assert len(tokens) == 1
    assert torch.equal(found, encode(untrained, ["a photo of a car", "a red car at night"]))


def test_learnt_word_of_several_embeddings_has_the_text_states_of_several_tokens(untrained):
    text = "old red car"
    tokens = untrained.tokenizer(text, add_special_tokens=False).input_ids
    vectors = untrained.text_encoder.get_input_embeddings().weight[tokens].detach()
    found = LearntWord(vectors, (), 0).states(untrained, TEMPLATES)
    assert len(tokens) > 1
    assert torch.equal(found, encode(untrained, [each.format(text) for each in TEMPLATES]))


def test_invert_lowers_the_loss_and_leaves_the_model_unchanged(untrained, pictures):
    parts = (untrained.unet, untrained.text_encoder, untrained.vae)
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    words = len(untrained.tokenizer)
    options = {"steps": 30, "batch": 4, "learning_rate": 0.5}
    found = invert(untrained, pictures, TEMPLATES, **options)
    assert sum(found.losses[-8:]) < sum(found.losses[:8])
    assert found.evaluations == 3 * 30 * 4
    assert len(untrained.tokenizer) == words
    for part, known in zip(parts, before, strict=True):
        assert all(torch.equal(value, known[name]) for name, value in part.state_dict().items())
        assert all(p.grad is None for p in part.parameters())
    again = invert(untrained, pictures, TEMPLATES, **options)
    assert torch.equal(found.vectors, again.vectors)


def test_invert_states_lowers_the_loss_and_leaves_the_model_unchanged(untrained, pictures):
    parts = (untrained.unet, untrained.text_encoder, untrained.vae)
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    options = {"steps": 30, "batch": 4, "learning_rate": 0.5}
    found = invert_states(untrained, pictures, "a car", **options)
    assert sum(found.losses[-8:]) < sum(found.losses[:8])
    assert found.evaluations == 3 * 30 * 4
    for part, known in zip(parts, before, strict=True):
        assert all(torch.equal(value, known[name]) for name, value in part.state_dict().items())
        assert all(p.grad is None for p in part.parameters())
    again = invert_states(untrained, pictures, "a car", **options)
    assert torch.equal(found.states, again.states)


def test_invert_states_starts_at_those_of_the_prompt_with_its_erasers(
    untrained, pictures, make_eraser
):
    load_erasure(untrained, make_eraser(untrained.unet))
    found = invert_states(untrained, pictures, "a car", steps=0)
    assert torch.equal(found.states, encode(untrained, ["a car"]))
    assert (found.losses, found.evaluations) == ((), 0)
    moved = invert_states(untrained, pictures, "a car", steps=1, batch=2, learning_rate=0.1)
    start = found.states[0]
    deviation = (start - start.mean(0)).square().mean().sqrt()
    moves = (moved.states[0] - start).abs() / deviation
    assert moves.max() == pytest.approx(0.1, rel=1e-3)  # the first update of Adam
    assert (moves > 0).any(1).all()  # every token's


def test_invert_states_refuses_no_pictures(untrained):
    with pytest.raises(ErasureError, match="learns from pictures; give some"):
        invert_states(untrained, [], "a car")


def test_state_inversion_learns_the_states_of_each_prompt_once_from_its_own_pictures(
    sampler, cases, monkeypatch
):
    learnt, given = [], []

    def recorded(pipe, pictures, prompt, **options):
        given.append(pictures)
        learnt.append((prompt, invert_states(pipe, pictures, prompt, **options)))
        return learnt[-1][1]

    monkeypatch.setattr("diffusers_erase.attacks.inversion.invert_states", recorded)
    twice = [*cases[:2], replace(cases[0], seed=99)]
    found = StateInversion(steps=2, batch=2, pictures=3)(sampler, twice)
    assert [prompt for prompt, _ in learnt] == [cases[0].prompt, cases[1].prompt]
    assert [len(pictures) for pictures in given] == [3, 3]
    assert not {p.tobytes() for p in given[0]} & {p.tobytes() for p in given[1]}
    picture, training = 2 * 2, 3 * 2 * 2
    spent = [2 * picture + training // 2, 2 * picture + training, 2 * picture + training // 2]
    assert [attempt.evaluations for attempt in found] == spent
    digests = {prompt: f"states {digest(each.states)}" for prompt, each in learnt}
    assert {a.artefact for a in found} > {""}
    assert all(a.artefact in ("", digests[a.prompt]) for a in found)


@pytest.mark.parametrize("name", ["steps", "batch", "pictures"])
def test_state_inversion_refuses_less_than_one(name):
    with pytest.raises(ErasureError, match=f"`{name}` of 1 or more; got 0"):
        StateInversion(**{name: 0})


def test_token_embeddings_end_with_its_block_also_after_an_error(untrained):
    encoder = untrained.text_encoder
    before = encode(untrained, ["a car"])
    (car,) = untrained.tokenizer("car", add_special_tokens=False).input_ids
    with token_embeddings(encoder, [car], torch.zeros(1, 1)):
        assert not torch.equal(encode(untrained, ["a car"]), before)
    with pytest.raises(RuntimeError), token_embeddings(encoder, [car], torch.zeros(1, 1)):
        raise RuntimeError
    assert not encoder.get_input_embeddings()._forward_hooks
    assert torch.equal(encode(untrained, ["a car"]), before)


@pytest.mark.parametrize(
    ("any_pictures", "templates", "message"),
    [
        (False, TEMPLATES, "learns from pictures and prompts"),
        (True, [], "learns from pictures and prompts"),
        (True, ["a photo of a car"], "needs one '{}'"),
    ],
)
def test_invert_refuses_no_pictures_no_templates_and_templates_without_a_place(
    untrained, pictures, any_pictures, templates, message
):
    with pytest.raises(ErasureError, match=message):
        invert(untrained, pictures if any_pictures else [], templates)


@pytest.mark.parametrize("name", ["steps", "batch", "pictures", "vectors", "starts"])
def test_inversion_refuses_less_than_one(name):
    with pytest.raises(ErasureError, match=f"`{name}` of 1 or more; got 0"):
        Inversion(**{name: 0})


def test_inversion_uses_the_word_of_the_lowest_loss_and_counts_all_starts(
    untrained, judge, cases, monkeypatch
):
    sampler, learnt = PipelineSampler(untrained, judge, Sampling(steps=2)), []

    def recorded(*args, **options):
        learnt.append(invert(*args, **options))
        return learnt[-1]

    monkeypatch.setattr("diffusers_erase.attacks.inversion.invert", recorded)
    used = []
    states = LearntWord.states
    monkeypatch.setattr(
        LearntWord, "states", lambda word, *args: used.append(word) or states(word, *args)
    )
    attack = Inversion(steps=2, batch=2, pictures=2, vectors=2, starts=3)
    evaluations = run_attack(attack, sampler, cases).evaluations
    assert [len(word.vectors) for word in learnt] == [2, 2, 2]
    assert len({word.loss for word in learnt}) == 3
    assert used == [min(learnt, key=lambda word: word.loss)]
    assert sum(word.evaluations for word in learnt) == 3 * (3 * 2 * 2) < evaluations


@pytest.mark.slow
def test_inversion_brings_an_erased_concept_back(playground, judge, cases):
    eraser = erase(playground, Concept("car"), recipe="closed-form", progress=False, check=False)
    load_erasure(playground, eraser)
    sampler = PipelineSampler(playground, judge, Sampling(steps=10))
    found = run_attack(Inversion(steps=150, learning_rate=0.1), sampler, cases)
    assert found.pre.hits == 0
    assert found.post.hits >= 2


@pytest.mark.slow
def test_inversion_finds_nothing_in_an_untrained_model(untrained, judge, cases):
    sampler = PipelineSampler(untrained, judge, Sampling(steps=10))
    assert run_attack(Inversion(steps=20), sampler, cases).post.hits == 0


@pytest.mark.slow
def test_state_inversion_brings_an_erased_concept_back(playground, judge, cases):
    eraser = erase(playground, Concept("car"), recipe="closed-form", progress=False, check=False)
    load_erasure(playground, eraser)
    sampler = PipelineSampler(playground, judge, Sampling(steps=10))
    found = run_attack(StateInversion(steps=60), sampler, cases)
    assert found.pre.hits == 0
    assert found.post.hits >= 2
