import pytest
import torch

from diffusers_erase.cache import TensorCache
from diffusers_erase.editing.prior import gram, own_prompts, own_words, spared
from diffusers_erase.editing.rows import Texts, texts_of
from diffusers_erase.errors import ErasureError


def test_second_moments_are_those_of_all_tokens(untrained):
    texts, prompts = texts_of(untrained), ["a car", "a red van", ""]
    rows = texts.encode(prompts).flatten(0, 1).double()
    assert torch.allclose(gram(texts, prompts), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_long_lists_are_taken_in_pieces(untrained):
    texts = texts_of(untrained)
    asked = []

    def watched(prompts):
        asked.append(len(prompts))
        return texts.encode(prompts)

    whole = gram(Texts(watched, texts.tokenizer), ["a car", "a van"] * 100)
    assert max(asked) < 100
    assert torch.allclose(whole, gram(texts, ["a car", "a van"]), rtol=1e-4, atol=1e-5)


def test_they_are_kept_for_this_text_encoder_and_these_prompts(untrained, tmp_path):
    texts, cache = texts_of(untrained), TensorCache(tmp_path)

    def not_again(_):
        raise AssertionError("encoded anew")

    first = spared(texts, ["a car"], cache=cache, encoder="one")
    kept = Texts(not_again, texts.tokenizer)
    assert torch.equal(spared(kept, ["a car"], cache=cache, encoder="one"), first)
    for prompts, encoder in ((["a car"], "two"), (["a van"], "one")):
        with pytest.raises(AssertionError, match="encoded anew"):
            spared(kept, prompts, cache=cache, encoder=encoder)


def test_a_tokenizer_knows_words_of_its_own(untrained):
    words = own_words(untrained.tokenizer)
    assert {"car", "castle", "swirl", "red"} <= set(words)
    assert all(len(untrained.tokenizer.tokenize(word)) == 1 for word in words)
    assert own_words(untrained.tokenizer, 5) == words[:5]


def test_no_prompts_have_no_moments(untrained):
    with pytest.raises(ErasureError, match="list some captions"):
        gram(texts_of(untrained), [])


def test_near_prompts_weigh_as_much_as_all_that_is_listed_and_general(untrained):
    texts = texts_of(untrained)
    listed, near, general = ["a car", "an oak"], ["a van"], own_prompts(untrained.tokenizer)
    L, N, G = (gram(texts, prompts) for prompts in (listed, near, general))
    assert torch.allclose(spared(texts, listed), L)
    assert torch.allclose(spared(texts, listed, near), (2 * N + L) / 3)
    assert torch.allclose(spared(texts, listed, near, general=True), (2 * N + L + G) / 4)
    assert torch.allclose(spared(texts, [], near, general=True), (2 * N + G) / 3)


def test_general_prompts_say_every_word_as_thing_and_style(untrained):
    prompts, words = own_prompts(untrained.tokenizer), own_words(untrained.tokenizer)
    assert prompts[0] == ""
    assert len(prompts) > 300
    for word in words:
        assert sum(word in prompt.split() for prompt in prompts) >= 3
