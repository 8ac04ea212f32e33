"""load_erasure and its family: functions on a pipeline, also bound as its methods."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusers_erase.adapter import EraserAdapter
from diffusers_erase.concepts import text_fingerprint
from diffusers_erase.crossattention import denoiser_of
from diffusers_erase.errors import ErasureError
from diffusers_erase.runtime.baking import Erasures


_ATTRIBUTE = "_erasures"


@dataclass(frozen=True)
class Loaded:
    """An eraser in force."""

    concept: str
    target: str | None
    strength: float


def load_erasure(
    pipe: Any,
    source: str | Path | EraserAdapter,
    name: str | None = None,
    strength: float = 1.0,
    **hub: Any,
) -> str:
    """Erase from now on what the eraser erases; returns the name it goes by.

    Erasers add up, in any order, and stay on whatever other adapters come and go: they are written
    into the weights, with the originals kept aside.

    Args:
        pipe: a pipeline with a UNet, or the UNet.
        source: a folder, a Hub id (`user/erase-vangogh`), or an `EraserAdapter`.
        name: to address it by; its concept if omitted.
        strength: 0 is the base model, 1 the eraser as made; more erases more and harms more.
        **hub: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        ErasureError: not found, broken, made for another architecture, or the name is taken;
            nothing is changed.
    """
    unet = _plain(denoiser_of(pipe))
    adapter = (
        source
        if isinstance(source, EraserAdapter)
        else EraserAdapter.from_pretrained(source, **hub)
    )
    _same_texts(pipe, adapter)
    name = name or adapter.config.concept
    erasures = _erasures(unet)
    if name in erasures.loaded:
        raise ErasureError(
            f"An erasure named {name!r} is loaded already; "
            "give this one another `name`, or unload it first."
        )
    erasures.rebake(unet, {**erasures.loaded, name: (adapter, _finite(strength))})
    setattr(unet, _ATTRIBUTE, erasures)
    return name


def unload_erasure(pipe: Any, name: str) -> None:
    """Take one eraser off; after the last one the weights are the original ones bit for bit."""
    unet = _plain(denoiser_of(pipe))
    erasures = _named(unet, name)
    erasures.rebake(unet, {k: v for k, v in erasures.loaded.items() if k != name})


def unload_erasures(pipe: Any) -> None:
    """Take all erasers off."""
    unet = _plain(denoiser_of(pipe))
    _erasures(unet).rebake(unet, {})


def list_erasures(pipe: Any) -> dict[str, Loaded]:
    """Name -> what is erased, in the order of loading."""
    loaded = _erasures(denoiser_of(pipe)).loaded
    return {
        name: Loaded(adapter.config.concept, adapter.config.target, strength)
        for name, (adapter, strength) in loaded.items()
    }


def set_erasure_strength(pipe: Any, name: str, strength: float) -> None:
    """Change how strongly an eraser acts: 0 is off, 1 as made."""
    unet = _plain(denoiser_of(pipe))
    erasures = _named(unet, name)
    adapter, _ = erasures.loaded[name]
    erasures.rebake(unet, {**erasures.loaded, name: (adapter, _finite(strength))})


@contextmanager
def erasures_disabled(pipe: Any) -> Iterator[None]:
    """Inside the block the pipeline is the base model; afterwards the erasers are back.

    Erasers cannot be loaded, unloaded or changed inside.
    """
    unet = _plain(denoiser_of(pipe))
    erasures = _erasures(unet)
    loaded = erasures.loaded
    erasures.rebake(unet, {})
    erasures.disabled = True
    setattr(unet, _ATTRIBUTE, erasures)
    try:
        yield
    finally:
        erasures.disabled = False
        erasures.rebake(_plain(unet), loaded)


def _erasures(unet: nn.Module) -> Erasures:
    found: Erasures | None = getattr(unet, _ATTRIBUTE, None)
    return found or Erasures()


def _named(unet: nn.Module, name: str) -> Erasures:
    erasures = _erasures(unet)
    if name not in erasures.loaded:
        there = ", ".join(map(repr, erasures.loaded)) or "none"
        raise ErasureError(f"No erasure named {name!r} is loaded. Loaded: {there}.")
    return erasures


def _same_texts(pipe: Any, adapter: EraserAdapter) -> None:
    """Refuse a text map that was made for another text encoder, if there is one to compare with."""
    known = adapter.config.fingerprint.get("text") if adapter.text_map else None
    if not known or getattr(pipe, "text_encoder", None) is None:
        return
    there = torch.tensor(text_fingerprint(pipe, known["prompt"]))
    then = torch.tensor(known["state"])
    if (there - then).norm() > 0.1 * then.norm():
        raise ErasureError(
            f"The text encoder reads {known['prompt']!r} otherwise than the one this eraser was "
            "made for; it would erase something else here."
        )


def _plain(unet: nn.Module) -> nn.Module:
    """The denoiser, unless its weights must not be touched now.

    Erasures may be disabled for a while, or copies of the projections be in use, which no
    eraser would reach.
    """
    if _erasures(unet).disabled:
        raise ErasureError(
            "The erasures are disabled; load, unload or change them after the `with` block."
        )
    # `fused_projections` of a module stays True after unfusing; its processor tells
    processors = (getattr(module, "processor", None) for module in unet.modules())
    if any(type(processor).__name__.startswith("Fused") for processor in processors):
        raise ErasureError(
            "The pipeline's attention projections are fused; call "
            "`pipe.unfuse_qkv_projections()`, change the erasures, and fuse again."
        )
    return unet


def _finite(strength: float) -> float:
    if not math.isfinite(strength):
        raise ErasureError(f"`strength` must be a finite number; got {strength}.")
    return float(strength)
