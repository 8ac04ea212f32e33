import pytest
import torch

from diffusers_erase import Concept, ErasedConcept, EraserAdapter, EraserConfig, ErasureError, erase
from diffusers_erase.evaluation.leakage import Leakage, leakage, read
from diffusers_erase.models.architectures import TEXT_PARTS, projections
from diffusers_erase.models.text_states import encode


CAR = Concept("car")
WORDS = ["van", "truck", "oak", "castle", "daisy"]


def test_the_base_tells_everything(playground):
    found = leakage(playground, CAR, "oak")
    assert found.linear > 0.9
    assert found.mlp > 0.9


def test_what_is_read_alike_cannot_be_told(playground):
    layers = projections(playground.unet, TEXT_PARTS)
    blind = {path: (torch.eye(128), -layer.weight.detach()) for path, layer in layers.items()}
    nothing = EraserAdapter(blind, EraserConfig((ErasedConcept("car"),)))
    assert read(playground, ["an oak"], nothing).abs().max() < 1e-5
    assert leakage(playground, CAR, "oak", eraser=nothing).linear == pytest.approx(0.5, abs=0.25)


def test_an_edit_leaves_every_reader_less(playground):
    before = leakage(playground, CAR, "van")
    eraser = erase(playground, CAR, target="van", vocabulary=WORDS, recipe="closed-form")
    after = leakage(playground, CAR, "van", eraser=eraser)
    assert after.linear < before.linear
    assert after.mlp < before.mlp


def test_readers_see_the_keys_and_values_of_the_edited_layers(playground, make_eraser):
    eraser = make_eraser(playground.unet, parts=("to_v",), scale=0.3)
    seen = read(playground, ["a red car"], eraser)
    playground.load_erasure(eraser)
    states = encode(playground, ["a red car"]).mean(1)
    layers = projections(playground.unet, TEXT_PARTS).values()
    expected = torch.cat([states @ layer.weight.detach().T for layer in layers], 1)
    assert torch.allclose(seen, expected, atol=1e-5)


def test_bad_requests_are_refused(playground):
    with pytest.raises(ErasureError, match="4 different prompts"):
        leakage(playground, Concept("car", prompts=("a {}",)), "van")
    with pytest.raises(ErasureError, match="concept itself"):
        leakage(playground, CAR, "car")


@pytest.mark.parametrize(
    ("accuracy", "bits"), [(0.5, 0), (0.3, 0), (1.0, 1), (0.89, 0.5), (0.75, 0.1887)]
)
def test_what_a_reader_tells_is_what_it_proves(accuracy, bits):
    found = Leakage(0.5, accuracy, 16)
    assert found.bits == pytest.approx(bits, abs=1e-3)
    assert found.bound == 4
