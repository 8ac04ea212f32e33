"""The files of an eraser's repository, format 1.0 (docs/format.md), written and read."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Unpack

from huggingface_hub import ModelCard
from PIL import Image

from diffusers_erase.eraser.card import model_card
from diffusers_erase.eraser.config import CONFIG_NAME, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.payloads import PAYLOADS, Payload, check_copies, payload_named
from diffusers_erase.eraser.safetensors_io import header_of, shapes_in
from diffusers_erase.eraser.schema import BYTES, problem_of, read_json
from diffusers_erase.errors import ErasureError, first_line
from diffusers_erase.storage.atomic import read_text
from diffusers_erase.storage.hub import HubOptions, Snapshot, files_of, local_folder, snapshot


CARD_NAME = "README.md"
IMAGES = "images"

NO_ERASER = (
    "it is a LoRA, but no eraser. `EraserAdapter.from_checkpoint(file, concept)` makes one of it."
)


def written(
    payloads: Sequence[Payload],
    config: EraserConfig,
    repo_id: str,
    images: Mapping[str, Image.Image] | None = None,
) -> dict[str, bytes]:
    """Path in the repository -> bytes; the same bytes for the same eraser.

    `repo_id` is the name of the repository or folder, `images` prompt -> picture for the card.

    Raises:
        ErasureError: what would be written could not be read again.
    """
    try:
        text = json.dumps(config.to_dict(), indent=2) + "\n"
    except (TypeError, ValueError) as error:  # results and parameters are whatever a caller passed
        raise ErasureError(
            f"The eraser cannot be saved: its config takes plain values; {first_line(error)}."
        ) from error
    problem = problem_of(read_json(text, CONFIG_NAME))
    if problem:
        raise ErasureError(f"The eraser cannot be saved: in its config {problem}.")
    if len(images or {}) > 100:
        raise ErasureError(f"A card shows 100 pictures at most; got {len(images or {})}.")
    files = {CONFIG_NAME: text.encode()}
    for payload in payloads:
        files |= payload.files(config, repo_id)
    usage = [line for payload in payloads for line in payload.usage(repo_id)]
    shown = {}
    for k, (prompt, picture) in enumerate((images or {}).items()):
        path = f"{IMAGES}/{k:02d}.png"
        with BytesIO() as png:
            picture.convert("RGB").save(png, format="PNG")
            shown[path], files[path] = prompt, png.getvalue()
    files[CARD_NAME] = model_card(config, repo_id, shown, usage).encode()
    return files


Eraser = tuple[tuple[Payload, ...], EraserConfig, str | None]
"""Weights, config, and the commit they come from if they come from the Hub."""


def read(source: str | Path, **hub: Unpack[HubOptions]) -> Eraser:
    """Read an eraser from a folder, one file of it, or a repository on the Hub.

    Raises:
        ErasureError: there is nothing, or no eraser; or it is damaged, too large, or of a newer
            format. Safetensors and JSON only: nothing is executed.
    """
    path = local_folder(source)
    if path is not None and path.is_file():
        return _read_file(path)
    return content_of(snapshot(source, (CONFIG_NAME, *_weight_files()), **hub))


def content_of(files: Snapshot) -> Eraser:
    """Read an eraser from the files of its source; raises as `read` does."""
    content = config_in(files)
    config = EraserConfig.from_dict(_header_in(files) if content is None else content)
    kinds = [payload_named(name) for name in dict.fromkeys(config.payloads)]
    payloads = tuple(kind.read(files.path(kind.file)) for kind in kinds)
    check_copies(payloads)
    return payloads, config, files.commit


def config_in(files: Snapshot) -> Any:
    """The content of `erasure_config.json`, unchecked; None if there is none.

    Raises:
        ErasureError: it is no JSON, or larger or deeper than any eraser's.
    """
    path = files.folder / CONFIG_NAME
    return read_json(read_text(path, 4 * BYTES), path) if path.is_file() else None


_PICTURE = rf"{IMAGES}/[\w-]+\.png"
_FILES = rf"{CONFIG_NAME}|{CARD_NAME}|[\w-][\w.-]*\.safetensors|{_PICTURE}"
"""What belongs to an eraser; no other path of a repository is ever written."""


def copied(source: str, folder: Path, **hub: Unpack[HubOptions]) -> None:
    """Copy an eraser's files as they are, from a repository into an empty folder.

    Raises:
        ErasureError: it is no eraser, or a file of it cannot be had.
    """
    hub["revision"] = snapshot(source, [CONFIG_NAME], **hub).commit
    names = [name for name in files_of(source, **hub) if re.fullmatch(_FILES, name)]
    files = snapshot(source, names, **hub)
    content_of(files)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(files.path(name), folder / name)


def images_in(folder: Path) -> dict[str, Image.Image]:
    """Prompt -> picture, as a folder's card shows them.

    Raises:
        ErasureError: a picture cannot be read.
    """
    try:
        card: Any = ModelCard(read_text(folder / CARD_NAME, 4 * BYTES))
        shown = card.data.to_dict().get("widget") or []
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
    """Names in a folder that a former eraser may have left there."""
    found = folder.glob("*.safetensors") if folder.is_dir() else ()
    names = {path.name for path in found if "erasure" in header_of(path)}
    pictures = (folder / IMAGES).rglob("*") if (folder / IMAGES).is_dir() else ()
    if all(re.fullmatch(r"\d\d\.png", path.name) for path in pictures):
        names.add(IMAGES)
    return names | {*_weight_files(), CARD_NAME}


def ours_on(repo_id: str) -> Sequence[str]:
    """Patterns of paths that a former eraser may have left in a repository."""
    second = f"{repo_id.split('/')[-1]}.safetensors"  # written by earlier versions
    return [*_weight_files(), second, f"{IMAGES}/[0-9][0-9].png"]


def _weight_files() -> list[str]:
    return [kind.file for kind in PAYLOADS.values()]


def _read_file(path: Path) -> Eraser:
    names = shapes_in(path)[0]
    kind = next((kind for kind in PAYLOADS.values() if kind.is_in(names)), None)
    content = _header_of(path)
    if kind is None or content is None:
        what = NO_ERASER if kind is Lora else "it is no eraser's."
        raise ErasureError(f"The header of '{path}' has no config of an eraser: {what}")
    return (kind.read(path),), EraserConfig.from_dict({**content, "payloads": [kind.name]}), None


def _header_in(files: Snapshot) -> Any:
    """The config in the header of the first file with weights."""
    paths = (files.folder / name for name in _weight_files())
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ErasureError(
            f"'{files.source}' holds neither {CONFIG_NAME} nor weights of an eraser."
        )
    content = _header_of(path)
    if content is None:
        raise ErasureError(f"'{files.source}' holds no {CONFIG_NAME}: {NO_ERASER}")
    return content


def _header_of(path: Path) -> Any:
    """The config in a file's header, unchecked; None for the files of others."""
    text = header_of(path).get("erasure")
    content = read_json(text, f"the header of {path}") if text is not None else None
    return content if isinstance(content, dict) else None
