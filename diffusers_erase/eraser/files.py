"""The files of an eraser's repository, format 1.0 (docs/format.md): written, and read with care."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Unpack

import torch
from huggingface_hub import ModelCard
from PIL import Image

from diffusers_erase.eraser.card import model_card
from diffusers_erase.eraser.config import CONFIG_NAME, EraserConfig
from diffusers_erase.eraser.lora_formats import factors_in, kohya_keys, peft_keys
from diffusers_erase.eraser.safetensors_io import Opened, header_of, opened, serialized, shapes_in
from diffusers_erase.eraser.schema import BYTES, problem_of, read_json
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import Factors, architecture_or_default
from diffusers_erase.storage.atomic import read_text
from diffusers_erase.storage.hub import HubOptions, MissingFileError, fetch, files_of, pinned


WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
MAP_NAME = "text_map.safetensors"
CARD_NAME = "README.md"
IMAGES = "images"

NO_ERASER = (
    "it is a LoRA, but no eraser. `EraserAdapter.from_checkpoint(file, concept)` makes one of it."
)


@dataclass(frozen=True)
class Content:
    """What the files of an eraser say."""

    factors: Mapping[str, Factors]
    config: EraserConfig
    text_map: TextMap | None = None


def written(
    content: Content, repo_id: str, images: Mapping[str, Image.Image] | None = None
) -> dict[str, bytes]:
    """Path in the repository -> bytes; the same bytes for the same eraser.

    Args:
        content: of the eraser.
        repo_id: what the repository is called, or the folder.
        images: prompt -> picture drawn with the eraser, for the card; 100 at most.

    Raises:
        ErasureError: what would be written could not be read again.
    """
    told = content.config.to_dict()
    text = json.dumps(told, indent=2) + "\n"
    problem = problem_of(read_json(text, CONFIG_NAME))
    if problem:
        raise ErasureError(f"The eraser cannot be saved: of its config {problem}.")
    if len(images or {}) > 100:
        raise ErasureError(f"A card shows 100 pictures at most; got {len(images or {})}.")
    files: dict[str, bytes] = {}
    if content.factors:
        files |= _lora_files(content, _kohya_name(repo_id), told)
    if content.text_map is not None:
        T = content.text_map
        T = T if T.rank <= T.width else TextMap.of(T.change)
        pair = {"U": T.U.float(), "V": T.V.float()}
        files[MAP_NAME] = serialized(pair, {"format": "pt"})
    files[CONFIG_NAME] = text.encode()
    shown = {}
    for k, (prompt, picture) in enumerate((images or {}).items()):
        path = f"{IMAGES}/{k:02d}.png"
        shown[path], files[path] = prompt, _png(picture)
    files[CARD_NAME] = model_card(content.config, repo_id, shown, sorted(files)).encode()
    return files


def read(source: str | Path, **hub: Unpack[HubOptions]) -> Content:
    """An eraser out of a folder, one of its LoRA files, or a repository on the Hub.

    Raises:
        ErasureError: nothing there, not an eraser, damaged, larger than any eraser, or of a newer
            format; safetensors and JSON only, nothing is executed.
    """
    if Path(source).is_file():
        return _read_file(opened(Path(source)))
    told = read_config(source, **hub)
    config = EraserConfig.from_dict(told) if told is not None else None
    hub = pinned(source, CONFIG_NAME, **hub)
    payloads = config.payloads if config else ("lora",)
    factors: dict[str, Factors] = {}
    story: dict[str, Any] = {}
    if "lora" in payloads:
        file = opened(fetch(source, WEIGHTS_NAME, **hub))
        factors, story = factors_in(file), _story(file)
    if config is None and not story:
        raise ErasureError(f"'{source}' holds no {CONFIG_NAME}: {NO_ERASER}")
    config = config or EraserConfig.from_dict(story)
    mapped = "text_map" in config.payloads
    return Content(factors, config, _map_in(fetch(source, MAP_NAME, **hub)) if mapped else None)


def read_config(source: str | Path, **hub: Unpack[HubOptions]) -> Any:
    """What `erasure_config.json` says, unchecked; None where there is none.

    Raises:
        ErasureError: it is no JSON, or larger or deeper than any eraser's; or there is no such
            folder or repository.
    """
    try:
        path = fetch(source, CONFIG_NAME, **hub)
    except MissingFileError:
        return None
    return read_json(read_text(path, 4 * BYTES), f"{source}/{CONFIG_NAME}")


_PICTURE = rf"{IMAGES}/[\w-]+\.png"
_FILES = rf"{CONFIG_NAME}|{CARD_NAME}|[\w-][\w.-]*\.safetensors|{_PICTURE}"
"""What belongs to an eraser; no other path of a repository is ever written."""


def copied(source: str, folder: Path, **hub: Unpack[HubOptions]) -> None:
    """An eraser's files as they are, from a repository into an empty folder.

    Raises:
        ErasureError: it is no eraser, or a file of it cannot be had.
    """
    read(source, **hub)
    hub = pinned(source, CONFIG_NAME, **hub)
    for name in files_of(source, **hub):
        if re.fullmatch(_FILES, name):
            path = fetch(source, name, **hub)
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)


def images_in(folder: Path) -> dict[str, Image.Image]:
    """Prompt -> picture, as a folder's card shows them.

    Raises:
        ErasureError: a picture cannot be read.
    """
    try:
        shown = ModelCard.load(folder / CARD_NAME).data.to_dict().get("widget") or []
        found = {}
        for one in shown if isinstance(shown, list) else ():
            path = one["output"]["url"]
            if re.fullmatch(_PICTURE, path):
                with Image.open(folder / path) as picture:
                    found[str(one["text"])] = picture.convert("RGB")
    except (OSError, ValueError, TypeError, KeyError, Image.DecompressionBombError) as error:
        raise ErasureError(f"The pictures of '{folder}' cannot be read: {error}.") from error
    return found


def ours_in(folder: Path) -> set[str]:
    """What there is in a folder that a former eraser may have left there."""
    found = folder.glob("*.safetensors") if folder.is_dir() else ()
    told = {path.name for path in found if "erasure" in header_of(path)}
    pictures = (folder / IMAGES).rglob("*") if (folder / IMAGES).is_dir() else ()
    if all(re.fullmatch(r"\d\d\.png", path.name) for path in pictures):
        told.add(IMAGES)
    return told | {WEIGHTS_NAME, MAP_NAME, CARD_NAME}


def ours_on(repo_id: str) -> Sequence[str]:
    """Patterns of what a former eraser may have left in a repository."""
    return [
        WEIGHTS_NAME,
        MAP_NAME,
        f"{_kohya_name(repo_id)}.safetensors",
        f"{IMAGES}/[0-9][0-9].png",
    ]


def _lora_files(content: Content, name: str, told: Mapping[str, Any]) -> dict[str, bytes]:
    config = content.config
    dtype = getattr(torch, config.dtype)
    factors = {path: (A.to(dtype), B.to(dtype)) for path, (A, B) in content.factors.items()}
    if not all(x.isfinite().all() for pair in factors.values() for x in pair):
        raise ErasureError(f"The eraser holds numbers too large for {config.dtype}.")
    row = architecture_or_default(str(config.fingerprint.get("denoiser", "")))
    story = {"format": "pt", "erasure": json.dumps(told)}
    tensors, lora = peft_keys(factors, row.component)
    files = {WEIGHTS_NAME: serialized(tensors, {**story, "lora_adapter_metadata": lora})}
    if row.kohya:
        tensors, header = kohya_keys(factors)
        title = {"modelspec.title": f"Erases {config.title}"}
        files[f"{name}.safetensors"] = serialized(tensors, {**header, **title, **story})
    return files


def _kohya_name(repo_id: str) -> str:
    """What the second LoRA file is called, without its ending: as the repository, or nearly so."""
    name = re.sub(r"[^\w.-]", "-", repo_id.split("/")[-1])
    taken = f"{name}.safetensors" in (WEIGHTS_NAME, MAP_NAME)
    return f"{name}-kohya" if taken else name


def _png(picture: Image.Image) -> bytes:
    into = BytesIO()
    picture.convert("RGB").save(into, format="PNG")
    return into.getvalue()


def _read_file(file: Opened) -> Content:
    story = _story(file)
    if not story:
        raise ErasureError(f"'{file.path}' tells nothing of an erasure: {NO_ERASER}")
    config = EraserConfig.from_dict(story | {"payloads": ["lora"]})
    return Content(factors_in(file), config)


def _map_in(path: Path) -> TextMap:
    shapes = [shape for _, shape in sorted(shapes_in(path)[0].items())]
    if len(shapes) == 2 and [len(x) for x in shapes] == [2, 2] and shapes[0][1] > shapes[0][0]:
        width, rank = shapes[0]
        raise ErasureError(
            f"'{path}' holds a text map of rank {rank:,} for text states of width {width:,}; no "
            "map's rank exceeds its width."
        )
    found = opened(path).tensors
    if found.keys() != {"U", "V"} or not all(x.is_floating_point() for x in found.values()):
        raise ErasureError(f"'{path}' holds {', '.join(sorted(found))[:200]}, and not a text map.")
    return TextMap(found["U"].double(), found["V"].double())


def _story(file: Opened) -> dict[str, Any]:
    """What the file's header says of the erasure; empty for the LoRAs of others."""
    told = read_json(file.header.get("erasure", "{}"), f"the header of {file.path}")
    return told if isinstance(told, dict) else {}
