import os
import tracemalloc

import pytest
import torch

from diffusers_erase.errors import ErasureError
from diffusers_erase.storage.tensor_cache import TensorCache, digest


def made(value, count=10):
    made.calls += 1
    return {"x": torch.full((count,), float(value))}


made.calls = 0


def test_the_same_key_is_made_once_and_another_key_again(tmp_path):
    cache = TensorCache(tmp_path / "new")
    before = made.calls
    one = cache.get({"seed": 0, "guidance": 5.0}, lambda: made(1))
    same = cache.get({"guidance": 5.0, "seed": 0}, lambda: made(2))
    other = cache.get({"seed": 1, "guidance": 5.0}, lambda: made(3))
    assert made.calls - before == 2
    assert one["x"][0] == same["x"][0] == 1
    assert other["x"][0] == 3


def test_a_damaged_file_is_made_anew(tmp_path):
    cache = TensorCache(tmp_path)
    cache.get({}, lambda: made(1))
    next(tmp_path.glob("*.safetensors")).write_bytes(b"half")
    assert cache.get({}, lambda: made(2))["x"][0] == 2
    assert cache.get({}, lambda: made(3))["x"][0] == 2


def test_the_least_recently_used_make_room(tmp_path):
    cache = TensorCache(tmp_path, limit=3 * 4200)
    for k in range(3):
        cache.get({"k": k}, lambda k=k: made(k, 1000))
        for file in tmp_path.glob("*.safetensors"):
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10))
    cache.get({"k": 0}, lambda: made(9))  # used again: the youngest now
    cache.get({"k": 3}, lambda: made(3, 1000))
    before = made.calls
    cache.get({"k": 0}, lambda: made(9))
    cache.get({"k": 3}, lambda: made(9))
    assert made.calls == before
    cache.get({"k": 1}, lambda: made(1, 1000))
    assert made.calls == before + 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ErasureError, match="Cannot keep tensors in"):
        TensorCache(tmp_path / "file").get({}, lambda: made(1))


def test_a_digest_knows_values_shapes_and_types():
    x = torch.arange(6.0)
    assert digest(x) == digest(x.clone())
    others = [x + 1e-6, x.reshape(2, 3), x.double(), x.bfloat16()]
    assert len({digest(x), *map(digest, others)}) == 5
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert digest(one) != digest(two)
    two.load_state_dict(one.state_dict())
    assert digest(one) == digest(two)


def test_digest_copies_no_tensor():
    network = torch.nn.Linear(2048, 2048)
    tracemalloc.start()
    try:
        digest(network, network.weight.bfloat16(), torch.zeros(0))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
