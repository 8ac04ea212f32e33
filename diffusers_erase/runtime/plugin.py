"""load_erasure and its family: functions on a pipeline, also bound as its methods."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, overload
from warnings import warn
from weakref import WeakSet

import torch
from torch import nn

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.eraser.files import read
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.model import Model
from diffusers_erase.runtime.adapting import SWITCHED_OFF_BY
from diffusers_erase.runtime.arguments import (
    AnyMode,
    Source,
    chosen_mode,
    names_of,
    null_states,
    require_keep,
    require_text_layers_only,
    sources_of,
    strengths_of,
)
from diffusers_erase.runtime.erasures import Erasures
from diffusers_erase.runtime.fused_projections import require_unfused_projections
from diffusers_erase.runtime.interference import conflicts, interferences
from diffusers_erase.runtime.loaded_eraser import Keep, KeepNull, LoadedEraser, Mode
from diffusers_erase.storage.atomic import check_folder, whole_folder
from diffusers_erase.storage.hub import HubOptions, check_options
from diffusers_erase.storage.tensor_cache import digest


_ATTRIBUTE = "_erasures"

_DISABLED: WeakSet[nn.Module] = WeakSet()
"""Denoisers inside `erasures_disabled`: their erasers must not change, those of copies may."""

ACTS = 0.99
"""Share of an eraser's change from which on it acts in full; half precision rounds the rest."""


@dataclass(frozen=True)
class ErasureInfo:
    """A loaded eraser, as `list_erasures` describes it."""

    concepts: tuple[ErasedConcept, ...]
    """What it erases, and what each is answered as."""
    strength: float
    mode: Mode
    source: str | None
    """The folder or Hub id it came from; None for an `EraserAdapter`."""
    commit: str | None
    """The commit of the repository, if it came from the Hub."""
    interference: Mapping[str, float]
    """Other eraser -> how much it changes this one's concept, as a share of what this one does."""
    keep_null: KeepNull | None = None
    """Whether it is skipped for the empty prompt."""


@overload
def load_erasure(
    pipe: Any,
    source: Source,
    name: str | None = None,
    strength: float = 1.0,
    mode: AnyMode = "auto",
    *,
    keep_base: Keep | None = None,
    keep_null: KeepNull | None = None,
    **hub: Unpack[HubOptions],
) -> str: ...


@overload
def load_erasure(
    pipe: Any,
    source: Sequence[Source],
    name: Sequence[str | None] | None = None,
    strength: float | Sequence[float] = 1.0,
    mode: AnyMode = "auto",
    *,
    keep_base: Keep | None = None,
    keep_null: KeepNull | None = None,
    **hub: Unpack[HubOptions],
) -> list[str]: ...


def load_erasure(
    pipe: Any,
    source: Source | Sequence[Source],
    name: str | Sequence[str | None] | None = None,
    strength: float | Sequence[float] = 1.0,
    mode: AnyMode = "auto",
    *,
    keep_base: Keep | None = None,
    keep_null: KeepNull | None = None,
    **hub: Unpack[HubOptions],
) -> str | list[str]:
    """Load an eraser, or a list of erasers, and return the name or names they are addressed by.

    Erasers add up, in any order, and other adapters do not switch them off. Of a list all erasers
    are loaded, or none. A warning names erasers that change one another's concepts.

    Args:
        pipe: a pipeline with a denoiser, or the denoiser.
        source: a folder, a file, a Hub id (`user/erase-vangogh`) or an `EraserAdapter`, or a list.
        name: to address it by; its concept if omitted. For a list, one for each.
        strength: 0 is the base model, 1 the eraser as made; more erases more and harms more. For a
            list, one for all or one for each.
        mode: `bake` writes into the weights, with the originals kept aside: no cost while drawing;
            `hook` adds to the layers' outputs, where weights cannot be rewritten (quantised,
            offloaded); `auto` bakes where it can; `adapter` is an ordinary adapter of peft, which
            the calls for other adapters switch off.
        keep_base: where the original weights are kept while erasers are in them, for all erasers of
            the denoiser: True beside the weights (the default), "cpu" to save GPU memory, False
            nowhere. Without them the last unload restores the weights up to rounding only, and
            `verify_erasures` knows only whether the weights are those that were written.
        keep_null: "exact" to skip the eraser for rows of a batch whose text states are the empty
            prompt's, so that its picture is the base's bit for bit in any precision. Hooks only,
            which `auto` takes then. Otherwise the empty prompt is kept as far as the weights round:
            erasers made orthogonal to it move it by some 1e-7 in float32, and visibly in halves.
        **hub: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        ErasureError: not found, broken, made for another architecture, or the name is taken;
            nothing is changed.
    """
    check_options("load_erasure", hub)
    unet = _editable(pipe)
    require_keep(keep_base, keep_null, mode)
    sources = sources_of(source)
    names = names_of(name, len(sources))
    strengths = strengths_of(strength, len(sources))
    model = Model.of(pipe)
    null = null_states(model) if keep_null else None
    erasures = _erasures(unet)
    loaded = dict(erasures.loaded)
    found: list[str] = []
    for one, own, s in zip(sources, names, strengths, strict=True):
        if isinstance(one, EraserAdapter):
            adapter, came_from, commit = one, None, None
        else:
            payloads, config, commit = read(one, **hub)
            adapter, came_from = EraserAdapter(payloads, config), str(one)
        _require_same_text_encoder(model, adapter)
        key = own or adapter.config.title
        if key in loaded:
            raise ErasureError(
                f"An erasure named {key!r} is loaded already; "
                "give this one another `name`, or unload it first."
            )
        adapter.check(unet)
        if keep_null:
            require_text_layers_only(unet, adapter)
        if adapter.text_map is not None:
            adapter = adapter.portable  # the LoRA beside a text map does not act
        how = chosen_mode(mode, unet, adapter, null=null is not None)
        loaded[key] = LoadedEraser(adapter, s, how, came_from, commit, null)
        found.append(key)
    warnings = [
        *conflicts(model, erasures, loaded, found),
        *(f"{one!r}: {SWITCHED_OFF_BY}." for one in found if mode == "adapter"),
    ]
    erasures.become(unet, loaded, keep_base)
    setattr(unet, _ATTRIBUTE, erasures)
    for warning in warnings:
        warn(warning, stacklevel=2)
    return found[0] if isinstance(source, Source) else found


def unload_erasure(pipe: Any, name: str) -> None:
    """Unload one eraser; after the last one the weights are the original ones bit for bit."""
    unet = _editable(pipe)
    erasures = _named(unet, name)
    erasures.become(unet, {k: v for k, v in erasures.loaded.items() if k != name})


def unload_erasures(pipe: Any) -> None:
    """Unload all erasers."""
    unet = _editable(pipe)
    _erasures(unet).become(unet, {})


def list_erasures(pipe: Any) -> dict[str, ErasureInfo]:
    """Name -> what is erased, in the order of loading.

    Interference is measured on text states, without sampling; it is empty where the pipeline cannot
    encode prompts.
    """
    model = Model.of(pipe)
    erasures = _erasures(model.denoiser)
    found = interferences(model, erasures, erasures.loaded)
    return {
        name: ErasureInfo(
            eraser.adapter.config.concepts,
            eraser.strength,
            eraser.mode,
            eraser.source,
            eraser.commit,
            found.get(name, {}),
            None if eraser.null is None else "exact",
        )
        for name, eraser in erasures.loaded.items()
    }


def set_erasure_strength(
    pipe: Any, name: str | Sequence[str], strength: float | Sequence[float]
) -> None:
    """Change the strength of one or more erasers: 0 is off, 1 as made."""
    unet = _editable(pipe)
    names = [name] if isinstance(name, str) else list(name)
    strengths = strengths_of(strength, len(names))
    loaded = dict(_erasures(unet).loaded)
    for one, s in zip(names, strengths, strict=True):
        loaded[one] = replace(_named(unet, one).loaded[one], strength=s)
    _erasures(unet).become(unet, loaded)


def erasure_names(pipe: Any) -> tuple[str, ...]:
    """Names of the erasers that are loaded, in the order of loading; nothing is computed.

    Empty inside `erasures_disabled`, and for a pipeline without a denoiser.
    """
    denoiser = Model.of(pipe).found
    return () if denoiser is None else tuple(_erasures(denoiser).loaded)


def verify_erasures(pipe: Any) -> dict[str, float]:
    """Name -> how much of an eraser's change the weights hold now: 1 where it acts in full.

    The erasers' changes are fitted to that of the weights, so that what others added (a fused
    style) does not count. Less than 1 means that the weights were overwritten since; loading the
    eraser anew restores it. nan means that it cannot be known.
    """
    unet = Model.of(pipe).denoiser
    return _erasures(unet).acting(unet)


def export_erased(pipe: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save the pipeline with its erasures in the weights, as a model that needs no diffusers_erase.

    The folder appears whole or not at all; with `overwrite` it may replace a former model.

    Raises:
        ErasureError: nothing is erased, an eraser does not act in full, ordinary adapters are
            loaded (fuse and unload them first), or the folder cannot be written.
    """
    denoiser = _editable(pipe)
    target = Path(folder).absolute()
    known = {*getattr(pipe, "components", ()), "README.md"}
    check_folder(target, overwrite=overwrite, marker="model_index.json", known=known)
    if not _erasures(denoiser).loaded:
        raise ErasureError("No erasure is loaded: there is nothing to export but the base.")
    beside = [name for name, x in _erasures(denoiser).loaded.items() if x.mode != "bake"]
    if beside:
        raise ErasureError(
            f"In hooks and not in the weights: {', '.join(map(repr, beside))}; unload, load anew "
            'with `mode="bake"`, and export then.'
        )
    weak = [
        f"{name!r} ({'unknown' if math.isnan(share) else f'{share:.0%}'})"
        for name, share in verify_erasures(pipe).items()
        if not share >= ACTS  # nan is not enough
    ]
    if weak:
        raise ErasureError(
            f"These erasers are not known to act in full: {', '.join(weak)}; load the model and "
            "them anew, without `keep_base=False`, then export."
        )
    if getattr(denoiser, "peft_config", None):
        raise ErasureError(
            "Ordinary adapters are loaded, and would be saved apart from the weights; call "
            "`pipe.fuse_lora()` and `pipe.unload_lora_weights()`, or only the latter, first."
        )
    with whole_folder(target) as draft:
        pipe.save_pretrained(draft, safe_serialization=True)
    return target


def erasures_key(pipe: Any) -> list[list[str | float]]:
    """Digests and strengths of all erasers, sorted; empty while they are disabled.

    Two pipelines with the same base and the same key draw alike, whatever the erasers are called.
    """
    loaded = _erasures(Model.of(pipe).denoiser).loaded.values()
    return sorted([digest(*x.adapter.source.tensors()), x.strength] for x in loaded)


@contextmanager
def erasures_disabled(pipe: Any) -> Iterator[None]:
    """Inside the block the pipeline is the base model; afterwards the erasers are back.

    Erasers cannot be loaded, unloaded or changed inside.
    """
    unet = _editable(pipe)
    erasures = _erasures(unet)
    loaded = erasures.loaded
    erasures.become(unet, {})
    _DISABLED.add(unet)
    setattr(unet, _ATTRIBUTE, erasures)
    try:
        yield
    finally:
        _DISABLED.discard(unet)
        erasures.loaded = loaded  # whatever happens below, they are listed
        try:
            erasures.become(unet, loaded)
        except ErasureError as refusal:
            raise ErasureError(
                f"{', '.join(map(repr, loaded))} do not act after `erasures_disabled()`, and will "
                f"after the next change that is possible. {refusal}"
            ) from refusal
    require_unfused_projections(unet)


def _erasures(unet: nn.Module) -> Erasures:
    return getattr(unet, _ATTRIBUTE, None) or Erasures()


def _named(unet: nn.Module, name: str) -> Erasures:
    erasures = _erasures(unet)
    if name not in erasures.loaded:
        known = ", ".join(map(repr, erasures.loaded)) or "none"
        raise ErasureError(f"No erasure named {name!r} is loaded. Loaded: {known}.")
    return erasures


def _require_same_text_encoder(model: Model, adapter: EraserAdapter) -> None:
    """Raise if a text map was made for another text encoder; one that fails is a warning."""
    known = adapter.config.fingerprint.get("text") if adapter.text_map else None
    if not known or model.textless:
        return
    try:
        found = torch.tensor(model.text_fingerprint(known["prompt"]))
    except Exception as error:
        warn(
            f"The eraser of '{adapter.config.title}' is loaded without a check that it was made "
            f"for this text encoder: {type(error).__name__}: {error}",
            stacklevel=3,
        )
        return
    expected = torch.tensor(known["state"], dtype=torch.float32)
    if len(found) != len(expected) or (found - expected).norm() > 0.1 * expected.norm():
        raise ErasureError(
            f"The text encoder reads {known['prompt']!r} otherwise than the one this eraser was "
            "made for, so that it would erase something else; load it on a model with that one."
        )


def _editable(pipe: Any) -> nn.Module:
    """The denoiser; raises if its erasers are disabled, or fused projections are in use."""
    unet = Model.of(pipe).denoiser
    if unet in _DISABLED:
        raise ErasureError(
            "The erasures are disabled; load, unload or change them after the `with` block."
        )
    require_unfused_projections(unet)
    return unet
