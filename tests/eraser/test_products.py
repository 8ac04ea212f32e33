"""Products of factors are bounded before anything is changed."""

import pytest
import torch

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.products import LARGEST, product_with, require_finite
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import text_weights
from diffusers_erase.runtime.plugin import list_erasures, load_erasure, verify_erasures
from tests.fuzzing import unet


CONFIG = EraserConfig((ErasedConcept("car"),))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (float("nan"), 1.0, "not finite"),
        (1.0, float("inf"), "not finite"),
        (1e10, 1e10, "up to 4e[+]20"),
        (1e20, 1e-20, "up to 2e[+]20"),
        (1e30, 1e30, "up to 4e[+]60"),
        (1e-30, 1e38, "up to"),
    ],
)
def test_require_finite_refuses_factors_and_products_without_bound(a, b, message):
    A, B = torch.full((4, 3), a), torch.full((5, 4), b)
    with pytest.raises(ErasureError, match=f"The change holds.*{message}"):
        require_finite(A, B, "The change")


def test_require_finite_accepts_what_is_below_the_bound_and_what_is_empty():
    require_finite(torch.full((1, 3), LARGEST**0.5), torch.full((5, 1), LARGEST**0.5 / 9), "x")
    require_finite(torch.zeros(0, 3), torch.zeros(5, 0), "x")


def test_product_with_a_half_precision_weight_is_in_float32():
    W = torch.randn(3, 4).half()
    x = torch.randn(4, 2).double()
    assert torch.equal(product_with(W)(x), W.float() @ x.float())


def test_lora_whose_product_overflows_is_refused():
    with pytest.raises(ErasureError, match="The LoRA of 'a' holds"):
        Lora({"a": (torch.full((2, 3), 1e20), torch.full((3, 2), 1e20))})


@pytest.mark.parametrize("scale", [1e10, 1e30])
def test_text_map_that_overflows_with_a_weight_is_refused_and_changes_nothing(scale):
    model = unet()
    with torch.no_grad():
        for weight in text_weights(model).values():
            weight.mul_(scale)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    eraser = EraserAdapter((TextMap(*(torch.full((8, 1), 1e3).double() for _ in "UV")),), CONFIG)
    with pytest.raises(ErasureError, match=r"text map's change of '.*' holds values, or products"):
        load_erasure(model, eraser)
    assert list_erasures(model) == {}
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_eraser_just_below_the_bound_loads_and_is_verified():
    model = unet()
    large = {
        path: (torch.full((1, 8), 1e6), torch.full((len(W), 1), 1e6))
        for path, W in text_weights(model).items()
    }
    load_erasure(model, EraserAdapter((Lora(large),), CONFIG))
    assert verify_erasures(model) == pytest.approx({"car": 1.0}, abs=1e-3)
