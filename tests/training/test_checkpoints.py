"""Real processes, really killed."""

import multiprocessing
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_erase.errors import ErasureError
from diffusers_erase.training.checkpoints import Checkpoints
from tests.training import run_training


PROCESSES = multiprocessing.get_context("forkserver")
"""Processes begin as copies of one that has imported the libraries and run nothing."""
PROCESSES.set_forkserver_preload([run_training.__name__])


def start(*arguments, **environment):
    """A training run in a process of its own; `process.said` receives the index of each step."""
    said, says = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run_training.main, args=(*arguments, environment, says))
    process.start()
    says.close()
    process.said = said
    return process


def finish(*processes):
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0


@pytest.mark.parametrize(
    ("form", "refresh"),
    [pytest.param("table", "0", marks=pytest.mark.slow), ("minimax", "0"), ("table", "2")],
)
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, form, refresh):
    how = {"FORM": form, "REFRESH": refresh}
    whole = start(tmp_path / "whole", 7, 4, None, **how)
    killed = start(tmp_path / "never", 7, 4, tmp_path / "run", **how)
    while killed.said.recv() < 2:
        pass
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "never").exists()
    resumed = start(tmp_path / "resumed", 7, 4, tmp_path / "run", **how)
    finish(whole, resumed)
    one, other = load_file(tmp_path / "whole"), load_file(tmp_path / "resumed")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(value.abs().sum() > 0 for name, value in one.items() if name.endswith(".1"))


def test_train_in_two_processes_gives_the_weights_of_one_with_both_batches(tmp_path):
    rendezvous = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29653"}
    ranks = [
        start(tmp_path / rank, 3, 2, None, FORM="table", RANK=rank, LOCAL_RANK=rank, **rendezvous)
        for rank in ("0", "1")
    ]
    alone = start(tmp_path / "alone", 3, 4, None, FORM="table")
    finish(*ranks, alone)
    zero, one, both = (load_file(tmp_path / name) for name in ("0", "1", "alone"))
    assert all(torch.equal(zero[name], one[name]) for name in zero)
    assert all(torch.allclose(zero[name], both[name], atol=1e-5) for name in zero)


def test_checkpoints_delete_old_files_and_find_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", {"seed": 0}, newest=2)
    assert checkpoints.latest() is None
    for step in (20, 40, 60):
        checkpoints.save(step, {"w": torch.full((2,), float(step))})
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["checkpoint-000040.safetensors", "checkpoint-000060.safetensors"]
    step, state = checkpoints.latest()
    assert step == 60
    assert state["w"].tolist() == [60, 60]


def test_checkpoints_skip_a_damaged_file_and_leave_other_files_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    checkpoints.save(20, {"w": torch.ones(1)})
    (tmp_path / "checkpoint-000040.safetensors").write_bytes(b"half")
    save_file({"w": torch.zeros(1)}, tmp_path / "checkpoint-000050.safetensors")
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoints.latest()[0] == 20
    checkpoints.save(60, {"w": torch.ones(1)})
    assert (tmp_path / "notes.txt").exists()


def test_checkpoints_refuse_another_run_and_name_the_difference(tmp_path):
    Checkpoints(tmp_path, {"seed": 0, "concept": "car"}).save(20, {"w": torch.ones(1)})
    with pytest.raises(ErasureError, match=r"concept was 'car', is 'oak'") as refused:
        Checkpoints(tmp_path, {"seed": 0, "concept": "oak"}).latest()
    assert "seed" not in str(refused.value)


def test_checkpoints_report_a_full_disk_and_leave_former_files(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, {"w": torch.ones(1)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # no file may be larger
    try:
        with pytest.raises(ErasureError, match="Cannot write a checkpoint"):
            checkpoints.save(2, {"w": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.latest()[0] == 1
