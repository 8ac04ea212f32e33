from huggingface_hub import ModelCard

from diffusers_erase.card import model_card
from diffusers_erase.config import EraserConfig


def card(**changes):
    config = EraserConfig(
        concept="car",
        synonyms=("automobile",),
        target="truck",
        recipe="replace",
        base_model="user/base",
        **changes,
    )
    return model_card(config.to_dict(), "user/erase-car")


def test_the_card_parses_and_says_what_the_hub_needs():
    data = ModelCard(card()).data
    assert data.base_model == "user/base"
    assert data.base_model_relation == "adapter"
    assert data.library_name == "diffusers"
    assert {"lora", "concept-erasure"} <= set(data.tags)


def test_the_card_names_concept_target_and_the_line_to_write():
    text = card()
    assert "car, automobile" in text
    assert "truck" in text
    assert 'pipe.load_erasure("user/erase-car")' in text


def test_what_was_not_measured_is_not_claimed():
    assert "Not measured." in card()
    measured = card(results={"drawn after erasing": "1 of 64"})
    assert "Not measured." not in measured
    assert "1 of 64" in measured
