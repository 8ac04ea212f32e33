"""Words that may be targets, and the prompts that erasers are made from and keep."""

from collections import Counter

import pytest

from diffusers_erase.concepts import Concept
from diffusers_erase.concepts.candidates import admissible, kept_prompts, parts_kept, proposed
from diffusers_erase.concepts.examples import prompts_to_erase


OBJECTS = ("bell", "belfry", "tower", "van", "oak", "painting", "window", "red", "beach", "night")


@pytest.mark.parametrize(
    ("concept", "words", "expected"),
    [
        (Concept("bell tower"), OBJECTS, ["belfry", "van", "oak"]),
        (Concept("oak", synonyms=("vans",)), OBJECTS, ["bell", "belfry", "tower"]),
        (Concept("red"), (*OBJECTS, "blue", "old"), ["blue"]),
        (Concept("red"), (*OBJECTS, "old"), ["old"]),
        (Concept("beach"), OBJECTS, ["night"]),
        (Concept("red car"), ("car", "cars", "oak", "blue"), ["red oak"]),
        (Concept("oak", "style"), OBJECTS, []),
        (Concept("oak"), ("oaks", "red oak", "photo"), []),
    ],
)
def test_proposed_words_are_of_the_concepts_kind_and_share_no_name(concept, words, expected):
    assert proposed(concept, [concept], words) == expected


def test_proposed_attributes_are_those_the_tokenizer_knows_if_none_is_listed():
    red = Concept("red")
    assert proposed(red, [red], ("oak", "van"), ("oak", "blue", "old", "van")) == ["blue"]
    assert proposed(Concept("pointy", "attribute"), [red], ("oak",), ("oak", "blue")) == []


def test_proposed_words_name_no_other_concept():
    car, red = Concept("car"), Concept("red car")
    assert proposed(red, [red, car], ("car", "oak")) == ["red oak"]
    assert proposed(car, [car, Concept("oak")], ("oak", "van")) == ["van"]


def test_admissible_words_mean_no_erased_concept():
    measured = [{"van": 0.4, "kitten": 0.3, "oak": 0.2}, {"van": 0.3, "kitten": 0.01, "oak": 0.6}]
    assert admissible(0, ["van", "kitten", "oak"], measured) == {"oak": 0.2, "van": 0.4}
    assert list(admissible(0, ["van", "kitten", "oak"], measured, synonym=0.25)) == ["van"]


def test_kept_prompts_name_no_erased_concept_beside_the_word():
    red, truck = Concept("red"), Concept("truck")
    texts = kept_prompts([("fire truck", "object"), ("blue", "attribute")], [red, truck], 28)
    assert "a photo of a fire truck" in texts
    assert "a photo of a blue house" in texts
    assert not any(red.is_named_in(text) for text in texts)
    compound = Concept("red car")
    kept = kept_prompts([("car", "object"), ("bus", "object")], [compound], 28)
    assert not any(compound.is_named_in(text) for text in kept)
    assert "a photo of a red bus" in kept
    assert parts_kept([compound, Concept("car")])
    assert not any("car" in text for text in parts_kept([compound, Concept("car")]))


def test_prompts_to_erase_name_each_name_often_enough():
    many = Concept("vehicle", synonyms=("car", "truck", "bus", "van", "tractor", "fire truck"))
    counted = Counter(prompt.name for prompt in prompts_to_erase(many, 8))
    assert set(counted) == set(many.names)
    assert min(counted.values()) >= 4
    few = Concept("car", synonyms=("automobile",))
    assert prompts_to_erase(few, 8)[:8] == few.example_prompts(8)


def test_prompts_to_erase_show_other_things_that_stay():
    dog = Concept("dog")
    texts = [prompt.text for prompt in prompts_to_erase(dog, 16, [dog, Concept("house")])][16:]
    assert texts == ["a photo of a dog and a car", "a photo of a cat and a dog"]
    assert len(prompts_to_erase(Concept("lumina", "style"), 16)) == 16
    assert len(prompts_to_erase(Concept("dog", prompts=("a {}",)), 16)) == 16
