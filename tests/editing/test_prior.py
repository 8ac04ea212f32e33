from dataclasses import replace

import pytest
import torch

from diffusers_erase.concepts import prompts_naming
from diffusers_erase.editing import prior
from diffusers_erase.editing.own_prompts import own_prompts, own_words
from diffusers_erase.editing.prior import gram, kept_moments, thinned
from diffusers_erase.editing.texts import Texts, texts_of
from diffusers_erase.errors import ErasureError
from diffusers_erase.playground import OBJECTS
from diffusers_erase.storage.tensor_cache import TensorCache


def test_gram_is_the_second_moment_of_all_tokens(untrained):
    texts, prompts = texts_of(untrained), ["a car", "a red van", ""]
    rows = texts.encode(prompts).flatten(0, 1).double()
    assert torch.allclose(gram(texts, prompts), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_gram_encodes_long_lists_in_chunks(untrained):
    texts = texts_of(untrained)
    asked = []

    def watched(prompts):
        asked.append(len(prompts))
        return texts.encode(prompts)

    whole = gram(Texts(watched, texts.tokenizer), ["a car", "a van"] * 50)
    assert max(asked) < 100
    assert torch.allclose(whole, gram(texts, ["a car", "a van"]), rtol=1e-4, atol=1e-5)


def every_state(texts, prompts):
    rows = texts.encode(prompts).flatten(0, 1).double()
    return rows.T @ rows / len(rows)


def test_gram_of_a_long_list_samples_its_padding(playground):
    texts = texts_of(playground)
    for prompts in (own_prompts(texts.tokenizer), prompts_naming(OBJECTS, "object", 8)):
        whole = every_state(texts, prompts)
        assert (gram(texts, prompts) - whole).norm() < 0.02 * whole.norm()
        rows, count = thinned(texts, prompts[:64], 8)
        assert count == texts.encode(prompts[:64]).shape[:2].numel()
        assert len(rows) < 0.7 * count


def test_early_is_exact_for_padding_of_position_plus_the_prompts_end(untrained, monkeypatch):
    monkeypatch.setattr(prior, "WHOLE", 4)
    monkeypatch.setattr(prior, "ONE_IN", 4)
    known = texts_of(untrained)
    prompts = [f"a {word}" for word in OBJECTS[:12]] + [f"a red {word}" for word in OBJECTS[:12]]
    generator = torch.Generator().manual_seed(0)
    places, gains = torch.randn(24, 16, generator=generator), torch.rand(24, generator=generator)
    ends = known.ends(prompts)
    own = torch.randn(len(prompts), 24, 16, generator=generator)
    states = {}
    for k, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        padding = places + gains[:, None] * own[k, end - 1]
        states[prompt] = torch.where((torch.arange(24) < end)[:, None], own[k], padding)
    states[""] = own[0]

    def first(asked, length):
        return torch.stack([states[p][:length] for p in asked])

    texts = replace(known, encode=lambda asked: first(asked, 24), first=first)
    assert torch.allclose(gram(texts, prompts), every_state(texts, prompts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_thinned_is_exact_for_padding_of_position_plus_prompt(untrained, every):
    prompts, known = ["a car", "a van", "an oak", "a cat"], texts_of(untrained)
    generator = torch.Generator().manual_seed(0)
    own, places, rest = (
        torch.randn(*shape, 16, generator=generator) for shape in ((4,), (24,), (4, 24))
    )
    padded = known.padded(prompts, 24)[..., None]

    def encode(_):
        return torch.where(padded, places[None] + own[:, None], rest)

    texts = replace(known, encode=encode)
    rows, count = thinned(texts, prompts, every)
    assert torch.allclose(rows.T @ rows / count, every_state(texts, prompts).float(), atol=1e-4)


def test_kept_moments_are_cached_by_encoder_and_prompts(untrained, tmp_path):
    texts, cache = texts_of(untrained), TensorCache(tmp_path)

    def not_again(_):
        raise AssertionError("encoded anew")

    first = kept_moments(texts, ["a car"], cache=cache, encoder="one")
    kept = Texts(not_again, texts.tokenizer)
    assert torch.equal(kept_moments(kept, ["a car"], cache=cache, encoder="one"), first)
    for prompts, encoder in ((["a car"], "two"), (["a van"], "one")):
        with pytest.raises(AssertionError, match="encoded anew"):
            kept_moments(kept, prompts, cache=cache, encoder=encoder)


def test_own_words_are_the_tokenizers_whole_words(untrained):
    words = own_words(untrained.tokenizer)
    assert {"car", "castle", "swirl", "red"} <= set(words)
    assert all(len(untrained.tokenizer.tokenize(word)) == 1 for word in words)
    assert own_words(untrained.tokenizer, 5) == words[:5]


def test_gram_refuses_an_empty_list(untrained):
    with pytest.raises(ErasureError, match="list some captions"):
        gram(texts_of(untrained), [])


def test_kept_moments_weigh_near_listed_and_general_two_to_one_to_one(untrained):
    texts = texts_of(untrained)
    listed, near = ["a car", "an oak"], ["a van"]
    L, N, G = (gram(texts, prompts) for prompts in (listed, near, ["a bird", "a hat"]))
    assert torch.allclose(kept_moments(texts, listed), L)
    assert torch.allclose(kept_moments(texts, listed, near), (2 * N + L) / 3)
    assert torch.allclose(kept_moments(texts, listed, near, general=G), (2 * N + L + G) / 4)
    assert torch.allclose(kept_moments(texts, [], near, general=G), (2 * N + G) / 3)


def test_own_prompts_name_every_word_as_object_and_style(untrained):
    prompts, words = own_prompts(untrained.tokenizer), own_words(untrained.tokenizer)
    assert prompts[0] == ""
    assert len(prompts) > 300
    for word in words:
        assert sum(word in prompt.split() for prompt in prompts) >= 3
