import pytest
import torch

from diffusers_erase import Concept, ErasedConcept, EraserAdapter, EraserConfig, ErasureError, erase
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.models.architectures import TEXT_PARTS, projections
from diffusers_erase.models.text_states import encode
from tests.benchmarks.leakage import Leakage, keys_and_values, leakage


CAR = Concept("car")
WORDS = ["van", "truck", "oak", "castle", "daisy"]


def test_leakage_of_the_base_is_complete(playground):
    found = leakage(playground, CAR, "oak")
    assert found.linear > 0.9
    assert found.mlp > 0.9


def test_leakage_is_guessing_where_keys_and_values_are_zero(playground):
    layers = projections(playground.unet, TEXT_PARTS)
    zeroing = {path: (torch.eye(128), -layer.weight.detach()) for path, layer in layers.items()}
    nothing = EraserAdapter((Lora(zeroing),), EraserConfig((ErasedConcept("car"),)))
    assert not keys_and_values(playground, ["an oak"], nothing).any()
    found = leakage(playground, CAR, "oak", eraser=nothing)
    assert (found.linear, found.mlp, found.bits) == (0.5, 0.5, 0.0)


def test_leakage_of_an_edit_is_less_for_every_classifier(playground):
    before = leakage(playground, CAR, "van")
    eraser = erase(
        playground, CAR, target="van", vocabulary=WORDS, recipe="closed-form", check=False
    )
    after = leakage(playground, CAR, "van", eraser=eraser)
    assert after.linear < before.linear
    assert after.mlp < before.mlp


def test_keys_and_values_are_those_of_the_erased_layers(playground, make_eraser):
    eraser = make_eraser(playground.unet, parts=("to_v",), scale=0.3)
    found = keys_and_values(playground, ["a red car"], eraser)
    playground.load_erasure(eraser)
    states = encode(playground, ["a red car"]).mean(1)
    layers = projections(playground.unet, TEXT_PARTS).values()
    expected = torch.cat([states @ layer.weight.detach().T for layer in layers], 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_leakage_refuses_few_prompts_and_the_concept_as_target(playground):
    with pytest.raises(ErasureError, match="4 different prompts"):
        leakage(playground, Concept("car", prompts=("a {}",)), "van")
    with pytest.raises(ErasureError, match="concept itself"):
        leakage(playground, CAR, "car")


@pytest.mark.parametrize(
    ("accuracy", "bits"), [(0.5, 0), (0.3, 0), (1.0, 1), (0.89, 0.5), (0.75, 0.1887)]
)
def test_leakage_bits_follow_from_the_accuracy_by_fano(accuracy, bits):
    found = Leakage(0.5, accuracy, 16)
    assert found.bits == pytest.approx(bits, abs=1e-3)
    assert found.bound == 4
