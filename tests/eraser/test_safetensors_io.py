"""Files that are no regular safetensors files are refused, and never waited for."""

import os

import pytest
import torch
from safetensors.torch import save_file

from diffusers_erase import EraserAdapter, ErasureError
from diffusers_erase.eraser.safetensors_io import header_of, opened, shapes_in
from diffusers_erase.storage.atomic import read_text


@pytest.fixture(params=["pipe", "device", "stream", "loop"])
def endless(request, tmp_path):
    """A path whose content never ends, or never comes."""
    path = tmp_path / "x.safetensors"
    if request.param == "pipe":
        os.mkfifo(path)
    else:
        targets = {"device": "/dev/zero", "stream": "/proc/kmsg", "loop": path}
        path.symlink_to(targets[request.param])
    return path


def test_opened_refuses_what_is_no_regular_file(endless):
    for read in (opened, shapes_in):
        with pytest.raises(ErasureError):
            read(endless)
    assert header_of(endless) == {}
    with pytest.raises(ErasureError):
        EraserAdapter.from_checkpoint(endless, "car")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_read_text_refuses_what_is_no_regular_file(kind, tmp_path):
    path = tmp_path / "x.json"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(ErasureError, match="There is no file"):
        read_text(path, 100)


def test_read_text_reads_no_more_than_its_limit(tmp_path):
    (tmp_path / "x").write_text("0123456789")
    assert read_text(tmp_path / "x", 10) == "0123456789"
    with pytest.raises(ErasureError, match="10 bytes; 9 are read at most"):
        read_text(tmp_path / "x", 9)


@pytest.mark.parametrize("name", ["x" * 501, "a\nb", "\x1b[2J"])
def test_opened_refuses_names_that_are_no_path_of_a_layer(name, tmp_path):
    save_file({name: torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ErasureError, match="whose name is no path of a layer"):
        opened(tmp_path / "x.safetensors")
