import re
from dataclasses import replace

import pytest

from diffusers_erase import ErasureError, Nearest, Vocabulary, erase
from diffusers_erase.making import choosing
from diffusers_erase.training.recipes import SURGICAL_REMOVE, default_recipe


WORDS = Vocabulary(("truck", "oak", "cat", "fish"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    def brief(model, words):
        numbers = {"steps": 1, "sampling_steps": 1, "trajectories": 1, "batch": 2, "pool": 2}
        return replace(default_recipe(model, words), **numbers)

    monkeypatch.setattr(choosing, "default_recipe", brief)


def test_choose_recipe_trains_with_a_vocabulary(untrained, capsys):
    eraser = erase(untrained, "car", vocabulary=WORDS, check=False)
    assert eraser.config.recipe == "surgical-age"
    assert eraser.config.concepts[0].target in WORDS.words
    assert "recipe surgical-age: the vocabulary lists what to preserve" in capsys.readouterr().err


def test_choose_recipe_solves_without_a_vocabulary(untrained, capsys):
    eraser = erase(untrained, "car", check=False)
    assert eraser.config.recipe == "closed-form"
    assert "without a vocabulary training would preserve nothing" in capsys.readouterr().err


def test_choose_recipe_solves_without_a_unet(untrained, capsys):
    parts = {name: part for name, part in untrained.components.items() if name != "unet"}
    texts = type(untrained)(**parts, unet=None, requires_safety_checker=False)
    assert erase(texts, "car", vocabulary=WORDS, check=False).config.recipe == "closed-form"
    assert "has no UNet to train on" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"steps": 1}, {"target": Nearest(WORDS)}])
def test_choose_recipe_trains_if_an_argument_needs_training(untrained, capsys, options):
    eraser = erase(untrained, "car", progress=False, **options, check=False)
    assert eraser.config.recipe == "surgical-age"
    assert capsys.readouterr().err == ""


def test_robust_trains_against_learnt_words(untrained, monkeypatch):
    words, hard = SURGICAL_REMOVE.adversaries
    quick = {"steps": 1, "sampling_steps": 1, "trajectories": 1, "batch": 2, "pool": 2}
    brief = (replace(words, updates=1, batch=2), hard)
    brief = replace(SURGICAL_REMOVE, **quick, adversaries=brief)
    monkeypatch.setattr(choosing, "SURGICAL_REMOVE", brief)
    eraser = erase(untrained, "car", vocabulary=WORDS, robust=True, progress=False, check=False)
    assert eraser.config.recipe == "surgical-remove"
    blocks = {re.sub(r".*blocks\.\d+\.(attn2\.)?", "", path) for path in eraser.factors}
    assert blocks == set(brief.parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a `vocabulary`"),
        ({"vocabulary": Vocabulary(())}, "needs a `vocabulary`"),
        ({"vocabulary": Vocabulary(("car",))}, "needs a `vocabulary` of other concepts"),
        ({"vocabulary": WORDS, "recipe": "esd"}, "chooses the recipe"),
    ],
)
def test_robust_is_refused_before_any_work(untrained, options, message):
    with pytest.raises(ErasureError, match=message):
        erase(untrained, "car", robust=True, **options)
