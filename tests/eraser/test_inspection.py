"""What an eraser is without its weights, and every check short of drawing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.inspection import inspect_eraser, verify_eraser
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.errors import ErasureError
from tests.fuzzing import unet


GOLDEN = Path(__file__).parents[1] / "golden" / "erase-car"


def test_inspect_eraser_counts_layers_and_numbers_without_the_weights():
    found = inspect_eraser(GOLDEN)
    assert (found.layers, found.dtypes, found.commit) == (8, ("F32",), None)
    eraser = EraserAdapter.from_pretrained(GOLDEN)
    assert found.numbers == sum(x.numel() for one in eraser.payloads for x in one.tensors())


def test_verify_eraser_says_what_holds():
    assert verify_eraser(GOLDEN, unet()) == [
        f"{GOLDEN}: format 1.0",
        "LoRA of rank 2 on 8 layers, all of finite numbers",
        "text map of rank 2 for text states of width 8, all of finite numbers",
        "erase-car.safetensors changes the same layers by the same",
        "fits UNet2DConditionModel",
        "its LoRA is the text map's change of this model",
    ]


def test_verify_eraser_says_how_far_the_lora_is_from_the_map_on_another_model():
    other = unet()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(2)
    assert verify_eraser(GOLDEN, other)[-1] == (
        "its LoRA is the text map's change of another model; here it differs by 50%"
    )


def test_verify_eraser_refuses_a_second_file_that_differs(tmp_path):
    eraser = EraserAdapter.from_pretrained(GOLDEN)
    folder = eraser.save_pretrained(tmp_path / "erase-car")
    lora = Lora({path: (A, 2 * B) for path, (A, B) in eraser.factors.items()})
    other = replace(eraser, payloads=(lora,)).save_pretrained(tmp_path / "other")
    (other / Lora.file).replace(folder / "erase-car.safetensors")
    with pytest.raises(ErasureError, match=r"erase-car\.safetensors changes 8 layers otherwise"):
        verify_eraser(folder)
