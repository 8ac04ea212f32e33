"""The weights an eraser may consist of: one table, and copies that agree with what acts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import CONFIG_NAME
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.payloads import PAYLOADS, check_copies, payload_named
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.runtime.plugin import load_erasure
from tests.fuzzing import unet


GOLDEN = Path(__file__).parents[1] / "golden" / "erase-car"


@pytest.fixture
def eraser():
    return EraserAdapter.from_pretrained(GOLDEN)


def test_payload_named_refuses_what_only_a_newer_version_knows():
    assert [payload_named(name) for name in ("lora", "text_map")] == [Lora, TextMap]
    with pytest.raises(ErasureError, match=r"payload 'gate' that this version.*does not know"):
        payload_named("gate")


def test_eraser_has_its_payloads_in_the_order_of_the_table_and_each_once(eraser):
    lora, text_map = eraser.payloads
    assert EraserAdapter((text_map, lora), eraser.config).payloads == (lora, text_map)
    assert replace(eraser, payloads=(lora,)).config.payloads == ("lora",)
    for payloads in ((), (lora, lora)):
        with pytest.raises(ErasureError, match="one or more of lora, text_map, each once"):
            EraserAdapter(payloads, eraser.config)


def test_text_map_is_what_acts_and_the_lora_beside_it_a_copy(eraser):
    doubled = replace(eraser, payloads=(eraser.payloads[0].scaled(2.0), eraser.text_map))
    model, other = unet(), unet()
    load_erasure(model, doubled)
    load_erasure(other, eraser.portable)
    for path in eraser.factors:
        here, there = (m.get_submodule(path).weight for m in (model, other))
        assert torch.equal(here, there)


@pytest.mark.parametrize("kind", PAYLOADS.values(), ids=[*PAYLOADS])
def test_every_file_alone_is_an_eraser_by_its_header(kind, eraser):
    alone = EraserAdapter.from_pretrained(GOLDEN / kind.file)
    assert alone.config == replace(eraser.config, payloads=(kind.name,))
    one = next(x for x in eraser.payloads if isinstance(x, kind))
    assert all(map(torch.equal, alone.payloads[0].tensors(), one.tensors()))


@pytest.mark.parametrize("kind", PAYLOADS.values(), ids=[*PAYLOADS])
def test_file_without_its_header_is_called_what_it_is(kind, eraser, tmp_path):
    tensors = {
        "lora": {
            "unet.a.lora_A.weight": torch.ones(1, 1),
            "unet.a.lora_B.weight": torch.ones(1, 1),
        },
        "text_map": {"U": torch.ones(2, 1), "V": torch.ones(2, 1)},
    }[kind.name]
    save_file(tensors, tmp_path / kind.file)
    with pytest.raises(ErasureError) as refusal:
        EraserAdapter.from_pretrained(tmp_path / kind.file)
    assert ("it is a LoRA" in str(refusal.value)) == (kind is Lora)


def test_folder_without_config_is_read_by_the_header_of_its_weights(eraser, tmp_path):
    for one in (eraser, eraser.portable):
        folder = one.save_pretrained(tmp_path / str(len(one.payloads)))
        (folder / CONFIG_NAME).unlink()
        assert EraserAdapter.from_pretrained(folder).config == one.config
    (tmp_path / "empty").mkdir()
    with pytest.raises(ErasureError, match=r"neither erasure_config\.json nor weights"):
        EraserAdapter.from_pretrained(tmp_path / "empty")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_copies_agree_whatever_type_they_are_written_in(eraser, tmp_path, dtype):
    folder = eraser.save_pretrained(tmp_path / "car", dtype=dtype)
    assert len(EraserAdapter.from_pretrained(folder).payloads) == 2


def other_direction(A, B):
    return A + 0.1 * torch.randn(A.shape, generator=torch.Generator().manual_seed(0)), B


def other_width(A, B):
    return torch.ones(1, 5), B[:, :1]


@pytest.mark.parametrize("change", [other_direction, other_width])
def test_lora_that_is_no_copy_of_the_text_map_is_refused_on_load(eraser, tmp_path, change):
    path, pair = next(iter(eraser.factors.items()))
    lora = Lora({**eraser.factors, path: change(*pair)})
    folder = replace(eraser, payloads=(lora, eraser.text_map)).save_pretrained(tmp_path / "x")
    with pytest.raises(ErasureError, match=rf"two different changes: that of '{path}'"):
        EraserAdapter.from_pretrained(folder)
    with pytest.raises(ErasureError, match=r"'mid\.attn1\.to_q' is not one of the text states"):
        check_copies((Lora({"mid.attn1.to_q": pair}), eraser.text_map))
    check_copies((lora,))
