"""Erasers from strangers: what was tampered with loads as it says, or is refused in words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusers_erase import ErasureError
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.models.model import Model
from diffusers_erase.runtime.plugin import list_erasures, load_erasure
from tests.fuzzing import MEGABYTES, SECONDS, erasers, fuzz, pipeline, unet


@pytest.mark.parametrize("cases", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_every_case_ends_in_what_it_says_or_in_a_refusal(cases, tmp_path):
    report = fuzz(cases, seed=cases, folder=tmp_path)
    assert report.slowest < SECONDS, str(report)
    assert report.megabytes < MEGABYTES, str(report)
    kinds = {what.split(": ")[1] for what in report.outcomes}
    assert kinds == {"refused", "loaded as its files say"}


KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_{}.weight"


def header(**tensors):
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def place(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


CRAFTED = {
    "a header of 2^62 bytes": (2**62).to_bytes(8, "little") + b"{}",
    "a header above its limit": (2**25).to_bytes(8, "little") + b"{}" + b" " * 2**25,
    "offsets beyond the file": header(a=place([2**40], 0, 2**42)) + bytes(8),
    "overlapping offsets": header(a=place([2], 0, 8), b=place([2], 4, 12)) + bytes(12),
    "a shape that overflows": header(a=place([2**33, 2**33], 0, 0)),
    "tensors without number": header(**{f"t{k}": place([0], 0, 0) for k in range(30_000)}),
    "paths for names": header(**{"../../../etc/passwd": place([2], 0, 8)}) + bytes(8),
    "JSON without end": (10_000).to_bytes(8, "little") + b"[" * 10_000,
    "a rank of thousands": header(
        **{KEY.format("A"): place([9999, 0], 0, 0), KEY.format("B"): place([0, 9999], 0, 0)}
    ),
    "pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n.",
}


@pytest.mark.parametrize("content", CRAFTED.values(), ids=CRAFTED.keys())
def test_crafted_files_are_refused_before_anything_changes(content, make_eraser, tmp_path):
    model = unet()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    folder = make_eraser(model).save_pretrained(tmp_path / "car")
    (folder / Lora.file).write_bytes(content)
    with pytest.raises(ErasureError):
        load_erasure(model, folder)
    assert not list_erasures(model)
    assert all(torch.equal(w, before[k]) for k, w in model.state_dict().items())


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/kcore", "/etc/passwd", Lora.file])
def test_links_in_a_snapshot_lead_nowhere(target, make_eraser, tmp_path):
    model = unet()
    folder = make_eraser(model).save_pretrained(tmp_path / "car")
    (folder / Lora.file).unlink()
    (folder / Lora.file).symlink_to(Path(target))
    with pytest.raises(ErasureError) as refusal:
        load_erasure(model, folder)
    assert "root:" not in str(refusal.value)


@pytest.mark.parametrize("state", [[0.5], [0.5] * 64, [0.0] * 8, [0] * 8])
def test_text_map_with_the_fingerprint_of_another_text_encoder_is_refused(state, tmp_path):
    pipe = pipeline(tmp_path)
    portable = erasers(Model.of(pipe))[-1]
    about = {**portable.config.fingerprint, "text": {"prompt": "car", "state": state}}
    with pytest.raises(ErasureError, match="reads 'car' otherwise"):
        load_erasure(pipe, replace(portable, config=replace(portable.config, fingerprint=about)))
