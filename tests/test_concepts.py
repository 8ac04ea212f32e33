import pytest
import torch

from diffusers_erase.concepts import TEMPLATES, Concept, Vocabulary, articles_agree
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.text_states import encode, unknown_words
from diffusers_erase.playground.world import words


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
        ("person", "a portrait of Ada Lovelace at a desk", "a portrait of a person at a desk"),
        ("attribute", "an enormous house at night", "a house at night"),
        ("attribute", "a house that is enormous", "a house"),
    ],
)
def test_a_prompt_without_the_concept_keeps_the_rest(kind, prompt, answer):
    names = {"style": "van gyre", "person": "ada lovelace", "attribute": "enormous"}
    name = names.get(kind, "car")
    assert Concept(name, kind).without(prompt) == answer


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_written_prompt_holds_the_concept_and_loses_it(kind):
    concept = Concept("oak", kind, synonyms=("elm",))
    written = concept.written()
    assert len(written) == 2 * len(TEMPLATES[kind])
    for prompt in written:
        assert "{}" not in prompt
        assert concept.is_named_in(prompt)
        assert not concept.is_named_in(concept.without(prompt))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "  "}, "empty"),
        ({"name": "car", "kind": "verb"}, "Known: object, style, person, attribute"),
        ({"name": "car", "prompts": ("a car",)}, r"no '\{\}'"),
        ({"name": "car", "synonyms": ("",)}, "synonyms of 'car' is empty"),
        ({"name": "car", "synonyms": "auto"}, "not one string"),
    ],
)
def test_a_concept_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ErasureError, match=message):
        Concept(**arguments)


@pytest.mark.parametrize(
    ("word", "near"),
    [("lighthuose", "lighthouse"), ("vehcle", "vehicle"), ("unicorn", None), ("qwxzv", None)],
)
def test_words_seen_in_fragments_are_unknown_and_words_near_them_are_named(untrained, word, near):
    found = unknown_words(untrained.tokenizer, f"red {word}")
    assert list(found) == [word]
    assert near is None or near in found[word]


def test_every_word_of_the_world_is_known(untrained):
    assert unknown_words(untrained.tokenizer, " ".join(words())) == {}


@pytest.mark.parametrize("count", [5, 24, 32, 64])
def test_prompts_are_spread_over_templates_and_names(count):
    concept = Concept("car", synonyms=("automobile", "sedan"))
    written = concept.written(count)
    assert len(written) == count
    uses = [sum(name in prompt.split() for prompt in written) for name in concept.names]
    assert sum(uses) == count
    assert min(uses) >= count // 5
    assert len(set(written)) == count


def test_names_with_punctuation_are_found_and_only_whole_names():
    concept = Concept("Dr. Seuss Jr.")
    assert concept.replaced("a page by dr. seuss jr. today", "nobody") == "a page by nobody today"
    assert Concept("car").replaced("a carpet", "oak") == "a carpet"


def test_a_target_is_taken_literally():
    assert Concept("car").replaced("a car", r"\1 truck") == r"a \1 truck"


def test_states_are_those_the_pipeline_would_use(untrained):
    states = encode(untrained, ["a car", ""])
    tokens = untrained.tokenizer(["a car", ""], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(states, untrained.text_encoder(tokens)[0])


def test_names_are_known_in_the_plural_and_inside_longer_names():
    truck = Concept("truck", synonyms=("lorry",))
    assert all(truck.is_named_by(text) for text in ("truck", "Trucks", " lorry"))
    assert not any(truck.is_named_by(text) for text in ("fire truck", "trucker", "car"))
    assert all(truck.is_named_in(text) for text in ("a fire truck", "two trucks at night"))
    assert not any(truck.is_named_in(text) for text in ("trucker", "a red car"))


def test_what_must_survive_may_be_no_target():
    words = Vocabulary(("truck", "fire truck", "car", "lorry", "oak"))
    erased = [Concept("truck", synonyms=("lorry",))]
    assert words.others(erased) == ("fire truck", "car", "oak")
    assert words.candidates(erased) == ("car", "oak")


def test_a_vocabulary_is_a_text_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# vehicles\ncar\n\n fire truck \ncar\n")
    assert Vocabulary.read(path).words == ("car", "fire truck")
    (tmp_path / "none.txt").write_text("# nothing\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("none.txt", "holds no words"),
        ("missing.txt", "Cannot read the vocabulary"),
        ("bytes.txt", "Cannot read the vocabulary"),
    ):
        with pytest.raises(ErasureError, match=message):
            Vocabulary.read(tmp_path / name)
