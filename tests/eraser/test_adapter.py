import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusers_erase.eraser.adapter import EraserAdapter, check_output
from diffusers_erase.eraser.config import CONFIG_NAME
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.errors import ErasureError
from diffusers_erase.runtime.plugin import load_erasure


def same(one, other):
    return one.factors.keys() == other.factors.keys() and all(
        torch.equal(a, b)
        for path in one.factors
        for a, b in zip(one.factors[path], other.factors[path], strict=True)
    )


def test_from_pretrained_reads_what_save_pretrained_wrote_bit_for_bit(
    untrained, make_eraser, tmp_path
):
    eraser = make_eraser(untrained.unet)
    back = EraserAdapter.from_pretrained(eraser.save_pretrained(tmp_path / "car"))
    assert same(eraser, back)
    assert back.config == eraser.config


def test_alpha_equals_rank_on_disk_so_that_no_reader_loses_the_strength(
    untrained, make_eraser, tmp_path
):
    folder = make_eraser(untrained.unet, rank=3).save_pretrained(tmp_path / "car")
    with safe_open(folder / Lora.file, "pt") as file:
        alphas = {float(file.get_tensor(x)) for x in file.keys() if x.endswith(".alpha")}  # noqa: SIM118
        assert file.metadata()["ss_network_alpha"] == "3.0"
        assert "lora_adapter_metadata" not in file.metadata()  # diffusers takes one of both
    assert alphas == {3.0}


@pytest.mark.parametrize("ranks", [(2, 2), (2, 5)])
def test_plain_diffusers_draws_the_same_with_the_lora(
    untrained, make_eraser, picture, tmp_path, ranks
):
    first, second = (make_eraser(untrained.unet, rank=r, scale=0.5) for r in ranks)
    mixed = {p: (first if i % 2 else second).factors[p] for i, p in enumerate(first.factors)}
    eraser = EraserAdapter((Lora(mixed),), first.config)
    folder = eraser.save_pretrained(tmp_path / "car")
    base = picture(untrained)
    load_erasure(untrained, folder)
    ours = picture(untrained)
    untrained.unload_erasures()
    untrained.load_lora_weights(folder)
    assert abs(base - ours).max() > 1e-3
    assert abs(picture(untrained) - ours).max() < 1e-4


def test_the_header_of_the_weights_holds_the_whole_config(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet)
    folder = eraser.save_pretrained(tmp_path / "car")
    (folder / CONFIG_NAME).unlink()
    assert EraserAdapter.from_pretrained(folder).config == eraser.config


def test_keys_of_a_newer_version_are_kept_and_warned_about(untrained, make_eraser, tmp_path):
    folder = make_eraser(untrained.unet).save_pretrained(tmp_path / "car")
    content = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**content, "gate": {"threshold": 0.5}}))
    with pytest.warns(UserWarning, match="gate"):
        back = EraserAdapter.from_pretrained(folder)
    back.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / CONFIG_NAME).read_text())["gate"] == {"threshold": 0.5}


def test_an_existing_folder_is_only_replaced_on_request_and_never_if_it_is_something_else(
    untrained, make_eraser, tmp_path
):
    one, two = make_eraser(untrained.unet, seed=1), make_eraser(untrained.unet, seed=2)
    folder = one.save_pretrained(tmp_path / "car")
    with pytest.raises(ErasureError, match=r"exists already.*--overwrite"):
        two.save_pretrained(folder)
    assert same(EraserAdapter.from_pretrained(folder), one)
    two.save_pretrained(folder, overwrite=True)
    assert same(EraserAdapter.from_pretrained(folder), two)
    diary = tmp_path / "diary"
    diary.mkdir()
    (diary / "today.txt").write_text("dear diary")
    with pytest.raises(ErasureError, match="holds something else"):
        two.save_pretrained(diary, overwrite=True)
    assert (diary / "today.txt").read_text() == "dear diary"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ErasureError, match="holds something else"):
        one.save_pretrained(folder, overwrite=True)
    assert same(EraserAdapter.from_pretrained(folder), two)


def test_save_pretrained_takes_an_empty_folder_that_exists(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet)
    (tmp_path / "car").mkdir(mode=0o700)
    check_output(tmp_path / "car", overwrite=False)
    assert same(EraserAdapter.from_pretrained(eraser.save_pretrained(tmp_path / "car")), eraser)
    with pytest.raises(ErasureError, match="exists already"):
        eraser.save_pretrained(tmp_path / "car")


def test_save_pretrained_adds_results_to_those_the_eraser_has(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet)
    eraser = replace(eraser, config=replace(eraser.config, results={"regained": 0.5, "drift": 1.0}))
    shares = {"base": 1.0, "erased": 0.0, "n": 8}
    folder = eraser.save_pretrained(tmp_path / "car", results={"target": shares, "drift": 2.0})
    found = EraserAdapter.from_pretrained(folder).config.results
    assert found == {"regained": 0.5, "drift": 2.0, "target": shares}
    assert "| regained | 0.5 |" in (folder / "README.md").read_text()


def test_save_pretrained_that_fails_leaves_the_former_eraser(
    untrained, make_eraser, tmp_path, monkeypatch
):
    one, two = make_eraser(untrained.unet, seed=1), make_eraser(untrained.unet, seed=2)
    folder = one.save_pretrained(tmp_path / "car")

    write, written = Path.write_bytes, []

    def full(path, content):
        if written:
            raise OSError(28, "No space left on device")
        written.append(write(path, content))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ErasureError, match="No space left"):
        two.save_pretrained(folder, overwrite=True)
    assert same(EraserAdapter.from_pretrained(folder), one)
    assert [path.name for path in tmp_path.iterdir()] == ["car"]


def test_an_unwritable_place_is_refused_and_leaves_nothing(untrained, make_eraser, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ErasureError, match="Cannot write"):
        make_eraser(untrained.unet).save_pretrained(tmp_path / "file" / "car")
    with pytest.raises(ErasureError, match="Cannot write"):
        check_output(tmp_path / "file" / "car", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def _spoil_bytes(folder):
    (folder / Lora.file).write_bytes(b"not a safetensors file")


def _spoil_config(folder):
    (folder / CONFIG_NAME).write_text("{")


def _remove_weights(folder):
    (folder / Lora.file).unlink()


def _edit(change):
    def spoil(folder):
        tensors = load_file(folder / Lora.file)
        change(tensors, next(key for key in tensors if key.endswith("down.weight")))
        save_file(tensors, folder / Lora.file)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_bytes, "no readable safetensors"),
        (_spoil_config, f"{CONFIG_NAME}' is broken"),
        (_remove_weights, f"holds no {Lora.file}"),
        (_edit(lambda tensors, key: tensors.pop(key)), "cannot read .* as a LoRA"),
        (_edit(lambda tensors, key: tensors.update(alien=torch.ones(1))), "'alien'"),
        (_edit(lambda tensors, key: tensors[key].fill_(float("nan"))), "not finite"),
        (
            _edit(lambda tensors, key: tensors.update({key: torch.ones(7, 3)})),
            "do not fit each other",
        ),
    ],
)
def test_load_erasure_names_broken_files_and_changes_nothing(
    untrained, make_eraser, tmp_path, spoil, message
):
    folder = make_eraser(untrained.unet).save_pretrained(tmp_path / "car")
    before = {k: v.clone() for k, v in untrained.unet.state_dict().items()}
    spoil(folder)
    with pytest.raises(ErasureError, match=message):
        untrained.load_erasure(folder)
    assert all(torch.equal(v, before[k]) for k, v in untrained.unet.state_dict().items())
    assert untrained.list_erasures() == {}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "no folder"),
        ("nowhere", "no folder 'nowhere'"),
        ("./erase-car", "no folder './erase-car'"),
        ("user/erase-vangogh", "cannot be had from the Hub: the Hub cannot be reached"),
    ],
)
def test_from_pretrained_names_a_source_that_cannot_be_found(source, message):
    with pytest.raises(ErasureError, match=message):
        EraserAdapter.from_pretrained(source)


def test_an_ordinary_lora_is_no_eraser(untrained, make_eraser, tmp_path):
    folder = make_eraser(untrained.unet).save_pretrained(tmp_path / "car")
    save_file(load_file(folder / Lora.file), folder / Lora.file)
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(ErasureError, match="no eraser"):
        EraserAdapter.from_pretrained(folder)


@pytest.mark.parametrize("value", [{1, 2}, b"1", torch.ones(1)])
def test_save_pretrained_refuses_results_that_are_no_plain_values(
    untrained, make_eraser, tmp_path, value
):
    eraser = make_eraser(untrained.unet)
    with pytest.raises(ErasureError, match=r"its config takes plain values; .* not JSON serial"):
        eraser.save_pretrained(tmp_path / "car", results={"mine": value})
    assert not (tmp_path / "car").exists()
