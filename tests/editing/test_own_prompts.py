from dataclasses import replace

import pytest
import torch

from diffusers_erase.concepts import Concept
from diffusers_erase.concepts.candidates import is_kept
from diffusers_erase.concepts.prompts import filled
from diffusers_erase.editing import own_prompts
from diffusers_erase.editing.own_prompts import OwnStatistics, own_pairs
from diffusers_erase.editing.texts import texts_of
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.gram import packed, unpacked


@pytest.fixture(scope="module")
def texts(shipped):
    return texts_of(shipped)


@pytest.fixture(scope="module")
def statistics(texts):
    return OwnStatistics.of(texts)


def every_state(texts, prompts):
    rows = texts.encode(prompts).flatten(0, 1).double()
    return rows.T @ rows / len(rows)


@pytest.fixture
def early(shipped, monkeypatch):
    """The texts, whose prompts are ended early though they are short."""
    monkeypatch.setattr("diffusers_erase.models.model.LONG_TEXT", 0)
    found = texts_of(shipped)
    assert found.first is not None
    return found


CASES = [("car", 0, 1), ("red", 77, 2), ("beach", 78, 1), ("photo", 78, 2), ("red neon", 1, 78)]
"""An erased concept, how many of 393 prompts name it, and how many are encoded then."""


@pytest.mark.parametrize(("name", "left_out", "encoded"), CASES)
def test_without_is_of_the_prompts_that_name_no_erased_concept(
    texts, statistics, name, left_out, encoded
):
    asked = set()

    def watched(prompts):
        asked.update(prompts)
        return texts.encode(prompts)

    concept = Concept(name)
    found = statistics.without(replace(texts, encode=watched), [concept])
    pairs = own_pairs(statistics.words)
    assert found.pairs == [pair for pair in pairs if is_kept(filled(*pair), pair[1], [concept])]
    assert len(pairs) - len(found.pairs) == left_out
    assert len(asked) == encoded
    assert len(found.endings) == len(found.pairs)
    whole = every_state(texts, ["", *(filled(*pair) for pair in found.pairs)])
    assert (found.gram - whole).norm() < 0.01 * whole.norm()


@pytest.mark.parametrize("name", ["red", "red neon"])
def test_without_is_definite_where_padding_is_an_estimate(early, name):
    found = OwnStatistics.of(early).without(early, [Concept(name)])
    assert torch.linalg.eigvalsh(found.gram)[0] > 0


def test_triangles_lose_only_the_rounding_to_float32(texts):
    G = every_state(texts, ["a car", "a red van", ""])
    assert (unpacked(packed(G)) - G).abs().max() <= 2**-24 * G.abs().max()


def test_a_tokenizer_without_whole_words_is_refused(texts, monkeypatch):
    monkeypatch.setattr(own_prompts, "whole_words", lambda _: [])
    with pytest.raises(ErasureError, match="a token for no whole word"):
        OwnStatistics.of(texts)
