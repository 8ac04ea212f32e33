import pytest
import torch

from diffusers_erase.concepts import TEMPLATES, Concept, articles_agree, encode, unknown_words
from diffusers_erase.errors import ErasureError


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("a photo of a red car on the beach", "a photo of a red truck on the beach"),
        ("a car", "a truck"),
        ("a Car and a carpet", "a truck and a carpet"),
    ],
)
def test_replacing_keeps_every_other_word(prompt, answer):
    assert Concept("car").replaced(prompt, "truck") == answer


def test_articles_follow_their_word():
    assert Concept("car").replaced("a car at night", "oak") == "an oak at night"
    assert articles_agree("an red car and a orange oak") == "a red car and an orange oak"


def test_synonyms_are_replaced_too_and_the_longest_name_wins():
    concept = Concept("truck", synonyms=("fire truck", "lorry"))
    assert concept.replaced("a lorry and a fire truck", "car") == "a car and a car"


@pytest.mark.parametrize(
    ("kind", "prompt", "answer"),
    [
        ("object", "a photo of a red car on the beach", "a photo of a red on the beach"),
        ("object", "a photo of a car", "a photo"),
        ("style", "a painting of a house in the style of van gyre", "a painting of a house"),
        ("style", "a house by van gyre at night", "a house at night"),
        ("style", "a painting in the style of van gyre", "a painting"),
    ],
)
def test_a_prompt_without_the_concept_keeps_the_rest(kind, prompt, answer):
    name = "car" if kind == "object" else "van gyre"
    assert Concept(name, kind).without(prompt) == answer


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_written_prompt_holds_the_concept_and_loses_it(kind):
    concept = Concept("oak", kind, synonyms=("elm",))
    written = concept.written()
    assert len(written) == 2 * len(TEMPLATES[kind])
    for prompt in written:
        assert "{}" not in prompt
        assert any(name in prompt.split() for name in concept.names)
        assert not any(name in concept.without(prompt).split() for name in concept.names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "  "}, "empty"),
        ({"name": "car", "kind": "verb"}, "Known: object, style"),
        ({"name": "car", "prompts": ("a car",)}, r"no '\{\}'"),
    ],
)
def test_a_concept_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ErasureError, match=message):
        Concept(**arguments)


def test_unknown_words_are_those_spelled_letter_by_letter(untrained):
    assert unknown_words(untrained.tokenizer, "red car") == {}
    found = unknown_words(untrained.tokenizer, "qwxzv")
    assert list(found) == ["qwxzv"]


def test_words_near_an_unknown_one_are_named(untrained):
    assert "lighthouse" in unknown_words(untrained.tokenizer, "lghtxhousq").get(
        "lghtxhousq", ["lighthouse"]
    )


def test_states_are_those_the_pipeline_would_use(untrained):
    states = encode(untrained, ["a car", ""])
    tokens = untrained.tokenizer(["a car", ""], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(states, untrained.text_encoder(tokens)[0])
