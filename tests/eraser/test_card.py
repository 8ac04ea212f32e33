import re

import pytest
from huggingface_hub import ModelCard

from diffusers_erase.eraser.card import MEASURED, model_card
from diffusers_erase.eraser.config import EraserConfig
from diffusers_erase.storage.hub import tag_of


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


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("user/base", 'DiffusionPipeline.from_pretrained("user/base")'),
        ("diffusers_erase.playground", "pipe = load_pipeline()"),
        ("/home/me/model", 'DiffusionPipeline.from_pretrained("...")'),
        ('x"); import os; ("', 'DiffusionPipeline.from_pretrained("...")'),
    ],
)
def test_the_snippet_opens_the_base_model(base, line):
    text = model_card(EraserConfig("car", base_model=base).to_dict(), "user/erase-car")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(snippet, "snippet", "exec")
    assert line in snippet
    assert ("base_model: user/base" in text) == (base == "user/base")


def test_what_was_not_measured_is_not_claimed():
    assert card().count("| not measured | not measured | not measured | - |") == len(MEASURED)
    shares = {"base": 0.95, "erased": 0.05, "low": -0.96, "high": -0.84, "n": 64}
    measured = card(results={"target": shares, "drawn": "1 of 64"})
    assert "| 95.0 % | 5.0 % | -90.0 % (-96.0 % .. -84.0 %) | 64 |" in measured
    assert measured.count("not measured | not measured") == len(MEASURED) - 1
    assert "| drawn | 1 of 64 |" in measured
    assert ModelCard(measured).data.eval_results[0].metric_value == 0.05


def test_how_the_target_was_chosen_is_told_with_its_rivals():
    chosen = {"concept": "car", "target": "fish", "how": "trial", "scores": {"fish": 0.1, "van": 2}}
    assert "chosen by trial; scores: fish (0.1), van (2)." in card(parameters={"choices": [chosen]})


def test_nothing_in_a_config_is_markup_or_leaves_its_cell():
    text = card(parameters={"a|b": "c|d\n# Title <script>", "choices": [1, {"scores": 3}]})
    assert "| a\\|b | c\\|d # Title &lt;script> |" in text


def test_pictures_and_the_second_file_are_shown():
    config = EraserConfig("car", base_model="user/base").to_dict()
    files = ["erase-car.safetensors", "pytorch_lora_weights.safetensors"]
    text = model_card(config, "user/erase-car", {"images/00.png": "a car"}, files)
    assert "<Gallery />" in text
    assert "`erase-car.safetensors` is the same with the keys that ComfyUI" in text
    assert ModelCard(text).data.widget == [{"text": "a car", "output": {"url": "images/00.png"}}]
    assert "Gallery" not in card()


def test_every_concept_has_a_tag_to_be_found_by():
    assert tag_of("Van Gogh") == tag_of("van gogh") == "erases-van-gogh"
    text = model_card(EraserConfig("Van Gogh, Paul Cézanne").to_dict(), "user/x")
    assert {"erases-van-gogh", "erases-paul-cézanne"} <= set(ModelCard(text).data.tags)
