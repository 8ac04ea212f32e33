from collections import Counter
from dataclasses import replace

import pytest
import torch

from diffusers_erase.concepts import Concept
from diffusers_erase.editing.edit import edit
from diffusers_erase.editing.recipes import CLOSED_FORM
from diffusers_erase.editing.texts import _Kept, texts_of
from diffusers_erase.models import model
from diffusers_erase.models.model import Model
from tests import zoo


PROMPTS = ["a car", "a photo of a red van", ""]


@pytest.fixture
def long(untrained, monkeypatch):
    """Texts of an encoder that ends prompts early, however few its states are."""
    monkeypatch.setattr(model, "LONG_TEXT", 0)
    return texts_of(untrained)


@pytest.fixture
def encoded(untrained):
    """Prompts by their number of positions, and how often each was encoded."""
    found = Counter()
    untrained.text_encoder.register_forward_pre_hook(
        lambda _, given, named: found.update(
            tuple(ids.tolist()) for ids in (given[0] if given else named["input_ids"])
        ),
        with_kwargs=True,
    )
    yield found
    untrained.text_encoder._forward_pre_hooks.clear()


def test_first_states_are_those_of_the_whole_prompt(untrained, long):
    whole = Model.of(untrained).encode(PROMPTS)
    assert torch.allclose(long.first(PROMPTS, 9), whole[:, :9], atol=1e-5)
    own = long.beginnings(PROMPTS, long.ends(PROMPTS))
    assert [len(each) for each in own] == [4, 8, 2]
    assert torch.allclose(own[1], whole[1, :8], atol=1e-5)
    assert untrained.tokenizer.model_max_length == 24


def test_short_texts_are_encoded_whole(untrained):
    assert texts_of(untrained).first is None
    assert not Model.of(untrained).ends_early


def test_encoders_that_read_what_follows_are_not_ended_early(untrained, monkeypatch):
    monkeypatch.setattr(model, "LONG_TEXT", 0)
    assert Model.of(zoo.sdxl(untrained.tokenizer)).ends_early
    encoder = untrained.text_encoder
    forward = encoder.forward

    def reading_all(*given, **named):
        found = forward(*given, **named)
        found[0].add_(found[0].mean(1, keepdim=True))
        return found

    monkeypatch.setattr(encoder, "forward", reading_all)
    assert not Model.of(untrained).ends_early


def test_a_prompt_is_encoded_once(untrained, encoded):
    texts = texts_of(untrained)
    first = texts.encode(["a car", "a van", "a car"])
    assert torch.equal(texts.encode(["a van", "a car"]), first[1:])
    assert [*encoded.values()] == [1, 1, 1]  # and the empty prompt


def test_states_beyond_the_limit_are_forgotten(untrained):
    kept = _Kept(Model.of(untrained), limit=3 * 24 * 128 * 4)
    for k, word in enumerate(("car", "van", "oak", "cat", "dog")):
        kept.encode([f"a {word}"])
        assert len(kept.states) == min(3, k + 2)  # with the empty prompt
    assert [*kept.states] == ["a oak", "a cat", "a dog"]
    assert kept.bytes == 3 * 24 * 128 * 4


def test_compared_states_have_the_squares_of_all_positions(long):
    length = long.compared_length(PROMPTS)
    few = long.compared(PROMPTS, length)
    assert few.shape == (3, 9, 128)
    whole = long.encode(PROMPTS)
    assert torch.allclose(few[:, :8], whole[:, :8], atol=1e-5)
    assert torch.allclose(few[:, 8] / 16**0.5, whole[:, 8], atol=1e-5)


@pytest.mark.parametrize("early", [True, False])
def test_an_edit_encodes_no_prompt_twice(untrained, encoded, monkeypatch, early):
    monkeypatch.setattr(model, "LONG_TEXT", 0 if early else 32)
    edit(texts_of(untrained), [Concept("car")], CLOSED_FORM)
    assert {n for ids, n in encoded.items() if len(ids) == 24} == {1}
    positions = sum(n * len(ids) for ids, n in encoded.items())
    assert positions < (0.6 if early else 1.01) * 24 * sum(encoded.values())
    assert sum(encoded.values()) < 1000


def test_alignments_of_many_prompts_tokenize_them_together(untrained, monkeypatch):
    texts = texts_of(untrained)
    answers = ["a van", "a photo of a red", "a truck"]
    each = [texts.aligned(p, a, 24) for p, a in zip(PROMPTS, answers, strict=True)]
    calls = []

    def tokenizer(*args, **options):
        calls.append(args)
        return untrained.tokenizer(*args, **options)

    counting = replace(texts, tokenizer=tokenizer, segments=())
    assert counting.all_aligned(PROMPTS, answers, 24) == each
    assert len(calls) == 1
