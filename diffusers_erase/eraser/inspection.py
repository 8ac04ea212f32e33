"""What can be told of an eraser: without its weights, and with every check short of drawing."""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Unpack

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import CONFIG_NAME, EraserConfig
from diffusers_erase.eraser.files import MAP_NAME, NO_ERASER, WEIGHTS_NAME, read, read_config
from diffusers_erase.eraser.safetensors_io import shapes_in
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.model import Model
from diffusers_erase.storage.hub import HubOptions, commit_of, fetch, files_of, header_on, pinned


@dataclass(frozen=True)
class Inspection:
    """Of an eraser in a folder or on the Hub."""

    source: str
    config: EraserConfig
    commit: str | None
    """Of the repository, on the Hub."""
    layers: int
    """That its LoRA changes; 0 for a portable one."""
    numbers: int
    """Parameters in all, of LoRA and text map."""
    dtypes: tuple[str, ...]
    """Of them, as safetensors names types."""
    files: tuple[str, ...]


def inspect_eraser(source: str | Path, **hub: Unpack[HubOptions]) -> Inspection:
    """Config, size and files of an eraser; from the Hub by ranged reads, without its weights.

    Raises:
        ErasureError: nothing there, or not an eraser.
    """
    told = read_config(source, **hub)
    if told is None:
        raise ErasureError(f"'{source}' holds no {CONFIG_NAME}: {NO_ERASER}")
    config = EraserConfig.from_dict(told)
    hub = pinned(source, CONFIG_NAME, **hub)
    local = Path(source).exists()
    folder = Path(source) / (hub.get("subfolder") or "")
    shapes: dict[str, list[int]] = {}
    dtypes: set[str] = set()
    for name, payload in ((WEIGHTS_NAME, "lora"), (MAP_NAME, "text_map")):
        if payload in config.payloads:
            found = shapes_in(folder / name) if local else header_on(str(source), name, **hub)
            shapes |= found[0]
            dtypes |= found[1]
    return Inspection(
        source=str(source),
        config=config,
        commit=commit_of(source, CONFIG_NAME, **hub),
        layers=sum(key.endswith(".lora_A.weight") for key in shapes),
        numbers=sum(map(prod, shapes.values())),
        dtypes=tuple(sorted(dtypes)),
        files=tuple(sorted(files_of(source, **hub))),
    )


def verify_eraser(source: str | Path, model: Any = None, **hub: Unpack[HubOptions]) -> list[str]:
    """Everything about an eraser that can be checked without drawing, in one line each.

    Args:
        source: a folder or a Hub id.
        model: a pipeline, or its denoiser, that it is to fit.
        **hub: as for `from_pretrained`.

    Raises:
        ErasureError: what does not hold, and then nothing is said of the rest.
    """
    content = read(source, **hub)
    hub = pinned(source, CONFIG_NAME, **hub)
    eraser = EraserAdapter(content.factors, content.config, content.text_map)
    told = [f"{source}: format {eraser.config.format}, {', '.join(eraser.config.payloads)}"]
    if eraser.factors:
        told.append(f"{len(eraser.factors)} layers, all pairs of finite numbers that fit")
    plain = [n for n in files_of(source, **hub) if re.fullmatch(r"[\w.-]+\.safetensors", n)]
    for name in plain:
        if name not in (WEIGHTS_NAME, MAP_NAME):
            _same_change(eraser, EraserAdapter.from_pretrained(fetch(source, name, **hub)), name)
            told.append(f"{name} changes the same layers by the same")
    if model is not None:
        denoiser = Model.of(model).denoiser
        eraser.check(denoiser)
        told.append(f"fits {type(denoiser).__name__}")
    return told


def _same_change(one: EraserAdapter, other: EraserAdapter, name: str) -> None:
    differing = one.factors.keys() ^ other.factors.keys()
    for path in one.factors.keys() & other.factors.keys():
        D, E = one.delta(path), other.delta(path)
        if D.shape != E.shape or (D - E).norm() > 1e-4 * D.norm():
            differing.add(path)
    if differing:
        raise ErasureError(
            f"{name} changes {len(differing)} layers otherwise than {WEIGHTS_NAME}, such as "
            f"'{min(differing)}'."
        )
