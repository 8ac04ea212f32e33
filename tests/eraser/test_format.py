"""Format 1.0 (docs/format.md): what was written once is read for good, the same bytes each time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_erase import EraserAdapter, ErasureError, erase
from diffusers_erase.eraser.config import CONFIG_NAME, ErasedConcept, EraserConfig
from diffusers_erase.eraser.files import images_in
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.safetensors_io import Limits, opened, serialized
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.models.architectures import text_layers
from diffusers_erase.runtime.plugin import load_erasure
from tests.fuzzing import unet


GOLDEN = Path(__file__).parents[1] / "golden" / "erase-car"


def bytes_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_eraser_of_format_1_0_loads_bit_for_bit_and_is_the_same_when_saved_again(tmp_path):
    eraser = EraserAdapter.from_pretrained(GOLDEN)
    assert eraser.config.format == "1.0"
    assert eraser.config.names == ("car", "automobile", "café")
    (car,) = eraser.config.concepts
    assert (car.kind, car.target, car.choice) == ("object", "bus", "trial")
    assert car.ranked == [("bus", 0.25), ("van", 0.5)]
    assert eraser.config.results["target"]["n"] == 64
    assert eraser.text_map.width == 8
    load_erasure(unet(), GOLDEN)
    again = bytes_of(eraser.save_pretrained(tmp_path / "erase-car"))
    was = bytes_of(GOLDEN)
    assert was.keys() - again.keys() == {"erase-car.safetensors"}  # the LoRA was there twice
    assert all(again[name] == was[name] for name in (CONFIG_NAME, TextMap.file))
    back = EraserAdapter.from_pretrained(tmp_path / "erase-car")
    assert back.config == eraser.config
    for one, other in zip(eraser.payloads, back.payloads, strict=True):
        assert all(map(torch.equal, one.tensors(), other.tensors()))
    assert bytes_of(back.save_pretrained(tmp_path / "again" / "erase-car")) == again


def test_half_precision_is_half_the_size_and_comes_back_as_it_was(untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet)
    for dtype, share in ((torch.float16, 0.5), (torch.bfloat16, 0.5), (torch.float32, 1)):
        folder = eraser.save_pretrained(tmp_path / str(dtype), dtype=dtype)
        numbers = sum(A.numel() + B.numel() for A, B in eraser.factors.values())
        size = (folder / Lora.file).stat().st_size
        assert 4 * share * numbers < size < 4 * share * numbers + 12_000
        back = EraserAdapter.from_pretrained(folder)
        for path, pair in eraser.factors.items():
            assert all(
                torch.equal(a.to(dtype).float(), b)
                for a, b in zip(pair, back.factors[path], strict=True)
            )
        again = back.save_pretrained(tmp_path / "again" / str(dtype))
        assert bytes_of(again)[Lora.file] == bytes_of(folder)[Lora.file]
    large = replace(
        eraser, payloads=(Lora({p: (A * 1e6, B) for p, (A, B) in eraser.factors.items()}),)
    )
    with pytest.raises(ErasureError, match="too large for float16"):
        large.save_pretrained(tmp_path / "large", dtype=torch.float16)
    assert not (tmp_path / "large").exists()


def test_an_eraser_of_stable_diffusions_shapes_and_rank_4_is_below_half_a_megabyte(tmp_path):
    widths = [320] * 4 + [640] * 4 + [1280] * 5 + [640] * 3
    factors = {
        f"down_blocks.0.attentions.{k}.transformer_blocks.0.attn2.{part}": (
            torch.randn(4, 768),
            torch.randn(width, 4),
        )
        for k, width in enumerate(widths)
        for part in ("to_k", "to_v")
    }
    eraser = EraserAdapter((Lora(factors),), EraserConfig((ErasedConcept("car"),), rank=4))
    folder = eraser.save_pretrained(tmp_path / "car", dtype=torch.float16)
    assert (folder / Lora.file).stat().st_size <= 500_000


def test_half_precision_moves_the_empty_prompt_by_rounding_only(untrained, tmp_path):
    eraser = erase(untrained, "car", vocabulary=["oak", "cat"], recipe="uce", check=False)
    with torch.no_grad():
        null = untrained.encode_prompt("", "cpu", 1, False)[0][0]
        weights = {path: layer.weight for path, layer in text_layers(untrained.unet).items()}
    drift = {}
    for dtype in (torch.float32, torch.float16):
        folder = eraser.save_pretrained(tmp_path / str(dtype), dtype=dtype)
        back = EraserAdapter.from_pretrained(folder)
        drift[dtype] = max(
            float((null @ (B @ A).T).norm() / (null @ weights[path].detach().T).norm())
            for path, (A, B) in back.factors.items()
        )
    assert drift[torch.float32] < 1e-5
    assert 1e-5 < drift[torch.float16] < 1e-2


def test_config_names_the_payloads_of_its_eraser(tmp_path):
    whole = EraserAdapter.from_pretrained(GOLDEN)
    assert whole.portable.config.payloads == ("text_map",)
    alone = EraserAdapter((Lora(whole.factors),), replace(whole.config, payloads=("text_map",)))
    assert alone.config.payloads == ("lora",)
    assert EraserAdapter.from_pretrained(alone.save_pretrained(tmp_path / "x")).factors
    portable = whole.portable.save_pretrained(tmp_path / "portable")
    assert set(bytes_of(portable)) == {CONFIG_NAME, TextMap.file, "README.md"}


def test_pictures_of_a_card_are_found_again(tmp_path):
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    shown = {"a red car: new": red, "a “blue” car | bus": blue}
    folder = EraserAdapter.from_pretrained(GOLDEN).save_pretrained(tmp_path / "x", images=shown)
    found = images_in(folder)
    assert list(found) == list(shown)
    assert [picture.getpixel((0, 0)) for picture in found.values()] == [(255, 0, 0), (0, 0, 255)]
    with (folder / "README.md").open("r+b") as card:  # sparse: 5 GB that take no room
        card.truncate(5 * 2**30)
    with pytest.raises(ErasureError, match="bytes; 4,194,304 are read at most"):
        images_in(folder)
    with (folder / "README.md").open("r+b") as card:
        card.truncate(4_000)
    (folder / "images" / "01.png").write_bytes(b"junk")
    with pytest.raises(ErasureError, match=r"pictures of .* cannot be read"):
        images_in(folder)
    EraserAdapter.from_pretrained(GOLDEN).save_pretrained(folder, overwrite=True)
    assert images_in(folder) == {}
    assert not (folder / "images").exists()


def test_save_pretrained_refuses_what_could_not_be_read_again(tmp_path):
    eraser = EraserAdapter.from_pretrained(GOLDEN)
    for changes, message in (
        ({"recipe": "bus\x1b[2J"}, "'recipe' has characters that have no place there"),
        ({"results": {"note": "x" * 2**20}}, "characters are too many"),
    ):
        with pytest.raises(ErasureError, match=message):
            replace(eraser, config=replace(eraser.config, **changes)).save_pretrained(
                tmp_path / "x"
            )
    many = {str(k): Image.new("RGB", (2, 2)) for k in range(101)}
    with pytest.raises(ErasureError, match="100 pictures at most; got 101"):
        eraser.save_pretrained(tmp_path / "x", images=many)
    assert not list(tmp_path.iterdir())


def test_pictures_of_somebody_are_not_replaced(tmp_path):
    eraser = EraserAdapter.from_pretrained(GOLDEN)
    folder = eraser.save_pretrained(tmp_path / "x", images={"a": Image.new("RGB", (2, 2))})
    (folder / "images" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(ErasureError, match="holds something else"):
        eraser.save_pretrained(folder, overwrite=True)
    assert (folder / "images" / "holiday.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(file=100), "bytes; 100 are read at most"),
        (Limits(header=10), "header of .* 10 are read at most"),
        (Limits(tensors=1), "2 tensors; 1 are read at most"),
    ],
)
def test_files_beyond_the_limits_are_refused_before_they_are_read(limits, message, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(serialized({"a": torch.ones(50), "b": torch.ones(2)}, {}))
    assert torch.equal(opened(path).tensors["a"], torch.ones(50))
    with pytest.raises(ErasureError, match=message):
        opened(path, limits)


def test_a_rank_no_eraser_has_is_refused(tmp_path):
    wide = EraserAdapter(
        (Lora({"a.attn2.to_k": (torch.ones(5000, 1), torch.ones(1, 5000))}),),
        EraserConfig((ErasedConcept("x"),)),
    )
    with pytest.raises(ErasureError, match="rank 5,000; 1 to 4,096 are read"):
        EraserAdapter.from_pretrained(wide.save_pretrained(tmp_path / "x"))
