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


def test_pool_prompts_name_the_words_of_the_vocabulary_and_change_no_template(monkeypatch):
    """A vocabulary whose first word is a word of the templates, too."""
    monkeypatch.setattr(module, "distances", lambda context, words: torch.ones(1, len(words)))
    context = SimpleNamespace(concepts=(Concept("car"),))
    prompts = pool(context, Vocabulary(("night", "oak", "car")), 32)
    assert all(("oak" in p) != ("night" in p.removesuffix(" at night")) for p in prompts)
    assert sum(p.endswith(" at night") for p in prompts) == 3
    assert not any("oak at oak" in p or "car" in p for p in prompts)
