"""Inspection of an eraser without its weights, and all checks of it that need no sampling."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import CONFIG_NAME, EraserConfig
from diffusers_erase.eraser.files import NO_ERASER, config_in, content_of
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.payloads import COPY, payload_named
from diffusers_erase.eraser.safetensors_io import shapes_in
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import text_weights
from diffusers_erase.models.model import Model
from diffusers_erase.storage.hub import HubOptions, files_of, header_on, snapshot


@dataclass(frozen=True)
class Inspection:
    """An eraser in a folder or on the Hub, as its files describe it."""

    source: str
    config: EraserConfig
    commit: str | None
    """The repository's commit, on the Hub."""
    layers: int
    """Layers that its LoRA changes; 0 for a portable one."""
    numbers: int
    """Parameters of all its weights."""
    dtypes: tuple[str, ...]
    """Types of the parameters, as safetensors names them."""
    files: tuple[str, ...]


def inspect_eraser(source: str | Path, **hub: Unpack[HubOptions]) -> Inspection:
    """Config, size and files of an eraser; from the Hub by ranged reads, without its weights.

    Raises:
        ErasureError: nothing there, or not an eraser.
    """
    files = snapshot(source, [CONFIG_NAME], **hub)
    content = config_in(files)
    if content is None:
        raise ErasureError(f"'{source}' holds no {CONFIG_NAME}: {NO_ERASER}")
    config = EraserConfig.from_dict(content)
    hub["revision"] = files.commit
    weights = [payload_named(name).file for name in config.payloads]
    if files.commit is None:
        headers = [shapes_in(files.path(file)) for file in weights]
    else:
        headers = [header_on(str(source), file, **hub) for file in weights]
    return Inspection(
        source=str(source),
        config=config,
        commit=files.commit,
        layers=sum(
            key.endswith((".lora_A.weight", ".lora_down.weight"))
            for shapes, _ in headers
            for key in shapes
        ),
        numbers=sum(prod(x) for shapes, _ in headers for x in shapes.values() if x),
        dtypes=tuple(sorted(set().union(*(dtypes for _, dtypes in headers)))),
        files=tuple(sorted(files_of(source, **hub))),
    )


def verify_eraser(source: str | Path, model: Any = None, **hub: Unpack[HubOptions]) -> list[str]:
    """Check all about an eraser that needs no sampling; returns a line for each check.

    `source` is a folder or a Hub id, `model` a pipeline or denoiser that the eraser is to fit.

    Raises:
        ErasureError: one of the checks fails; names the first.
    """
    files = snapshot(source, (CONFIG_NAME, "*.safetensors"), **hub)
    eraser = EraserAdapter(*content_of(files)[:2])
    lines = [f"{source}: format {eraser.config.format}"]
    lines += [f"{payload}, all of finite numbers" for payload in eraser.payloads]
    own = {payload.file for payload in eraser.payloads}
    for path in sorted(files.folder.glob("*.safetensors")):
        if path.name not in own:
            _same_change(eraser, EraserAdapter.from_pretrained(path), path.name)
            lines.append(f"{path.name} changes the same layers by the same")
    if model is not None:
        denoiser = Model.of(model).denoiser
        eraser.check(denoiser)
        lines.append(f"fits {type(denoiser).__name__}")
        if len(eraser.payloads) > 1:
            lines.append(_copy_on(eraser, denoiser))
    return lines


def _copy_on(eraser: EraserAdapter, denoiser: nn.Module) -> str:
    """Relative difference of the LoRA beside a text map from the map's change of these weights."""
    apart = size = 0.0
    for path, W in text_weights(denoiser).items():
        D = eraser.delta(path, W).cpu()
        copy = eraser.delta(path) if path in eraser.factors else torch.zeros(())
        size += float(D.square().sum())
        apart += float((D - copy if copy.shape == D.shape else D).square().sum())
    share = (apart / size) ** 0.5 if size else 0.0
    if share < COPY:
        return "its LoRA is the text map's change of this model"
    return f"its LoRA is the text map's change of another model; here it differs by {share:.0%}"


def _same_change(one: EraserAdapter, other: EraserAdapter, name: str) -> None:
    differing = one.factors.keys() ^ other.factors.keys()
    for path in one.factors.keys() & other.factors.keys():
        D, E = one.delta(path), other.delta(path)
        if D.shape != E.shape or (D - E).norm() > 1e-4 * D.norm():
            differing.add(path)
    if differing:
        raise ErasureError(
            f"{name} changes {len(differing)} layers otherwise than {Lora.file}, such as "
            f"'{min(differing)}'."
        )
