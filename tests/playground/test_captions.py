import pytest

from diffusers_erase import Concept
from diffusers_erase.playground import ARTISTS, OBJECTS
from diffusers_erase.playground import captions_with as captions_with


@pytest.mark.parametrize("name", ["car", "truck", "bell tower", "van gyre"])
def test_prompts_are_what_somebody_might_say(name):
    found = captions_with(name, 40)
    assert len(set(found)) == 40
    assert all(prompt.count("{}") == 1 and name not in prompt.replace("{}", "") for prompt in found)
    assert found == captions_with(name, 40)
    assert found != captions_with(name, 40, seed=1)
    kind = "style" if name in ARTISTS.values() else "object"
    concept = Concept(name, kind, prompts=found)
    assert all(concept.is_named_in(prompt.text) for prompt in concept.example_prompts())


def test_some_have_a_second_thing_and_some_a_place():
    found = " ; ".join(captions_with("car", 60))
    assert sum(name in found for name in OBJECTS if name != "car") >= 5
    assert "at night" in found or "in the snow" in found or "on the beach" in found


def test_captions_with_a_name_never_name_a_longer_one():
    assert not any("fire {}" in prompt for prompt in captions_with("truck", 60))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no object or painter 'dragon'"):
        captions_with("dragon")
