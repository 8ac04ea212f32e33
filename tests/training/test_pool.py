from collections import Counter
from types import SimpleNamespace

import torch

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.training import pool as module
from diffusers_erase.training.pool import apportioned, pool


def test_apportioned_indices_follow_the_weights():
    weights = torch.tensor([4.0, 1.0, 2.0])
    assert Counter(apportioned(weights, 7)) == {0: 4, 2: 2, 1: 1}
    assert apportioned(weights, 1) == [0]
    assert Counter(apportioned(torch.ones(3), 5)).most_common()[-1][1] == 1


def test_pool_prompts_name_the_words_in_prompts_of_their_kind_and_no_concept(monkeypatch):
    """Words of the templates are among those of the vocabulary, and among the concepts."""
    monkeypatch.setattr(module, "distances", lambda context, words: torch.ones(2, len(words)))
    context = SimpleNamespace(concepts=(Concept("car"), Concept("red")))
    words = Vocabulary(("night", "oak", "blue", "car", "fire truck"))
    prompts = pool(context, words, 48)
    assert len(prompts) == 48
    assert not any(c.is_named_in(p) for c in context.concepts for p in prompts)
    assert all(any(word in p for word in words.words) for p in prompts)
    assert not any("oak oak" in p or "photo of a night" in p for p in prompts)
    assert {"a photo of a house at night", "a photo of an oak", "a photo of a blue house"} < {
        *prompts
    }
    assert sum(" and a" in p for p in prompts) >= 8  # two things in one picture


def test_pool_of_a_compound_keeps_its_parts(monkeypatch):
    monkeypatch.setattr(module, "distances", lambda context, words: torch.ones(1, len(words)))
    concept = Concept("red car")
    context = SimpleNamespace(concepts=(concept,))
    prompts = pool(context, Vocabulary(("oak", "bus")), 16)
    assert prompts[:8] == list(concept.kept_prompts()[:8])
    assert all("oak" in p or "bus" in p for p in prompts[8:])
    assert pool(context, None, 4) == list(concept.kept_prompts()[:4])
    assert pool(context, None, 0) == []
