"""LoRA files: read with any keys that diffusers knows, written with those of peft and kohya."""

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diffusers_erase.eraser.safetensors_io import ERASER, Opened
from diffusers_erase.eraser.schema import BYTES, read_json
from diffusers_erase.errors import ErasureError, first_line
from diffusers_erase.models.architectures import (
    COMPONENTS,
    Factors,
    architecture_or_default,
    reads_text,
)
from diffusers_erase.models.model import Model
from diffusers_erase.storage.atomic import read_text


_PARTS = "|".join(COMPONENTS)
_PEFT = "base_model.model."
"""Prefix of a layer's path in files that peft writes."""


def peft_keys(
    factors: Mapping[str, Factors], part: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header as `pipe.load_lora_weights` reads them.

    `part` is the name of the denoiser in pipelines.
    """
    tensors = {}
    for path, (A, B) in factors.items():
        tensors[f"{part}.{path}.lora_A.weight"] = A.contiguous()
        tensors[f"{part}.{path}.lora_B.weight"] = B.contiguous()
    ranks = {path: len(A) for path, (A, _) in factors.items()}
    rank = max(ranks.values())
    others = {path: r for path, r in ranks.items() if r != rank}
    # exactly the fields that old and new diffusers read; alpha == rank keeps the strength
    lora = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "use_dora": False,
        "lora_bias": False,
    }
    settings = json.dumps({f"{part}.{key}": value for key, value in lora.items()})
    return tensors, {"format": "pt", "lora_adapter_metadata": settings}


def kohya_keys(factors: Mapping[str, Factors]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as ComfyUI, A1111 and diffusers read them, and the header that names the family.

    All are padded with zeros to one rank, and alpha is that rank: readers disagree about files with
    more than one rank.
    """
    rank = max(len(A) for A, _ in factors.values())
    tensors = {}
    for path, (A, B) in factors.items():
        key = f"lora_unet_{path.replace('.', '_')}"
        missing = rank - len(A)
        tensors[f"{key}.lora_down.weight"] = pad(A, (0, 0, 0, missing))
        tensors[f"{key}.lora_up.weight"] = pad(B, (0, missing))
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    width = next((A.shape[1] for path, (A, _) in factors.items() if reads_text(path)), 0)
    family = architecture_or_default("").families.get(width)
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        **({"modelspec.architecture": family.modelspec} if family else {}),
    }
    return tensors, header


def holds_lora(file: Opened) -> bool:
    """True if a file holds a LoRA, and not the weights of a whole model."""
    return any("lora" in key for key in file.tensors)


def factors_in(file: Opened, base: Model | None = None) -> dict[str, Factors]:
    """Path -> (A, B) of a LoRA file, float32: B A is the change of a weight at scale 1.

    diffusers converts the keys: peft's, kohya's, and those of its own older versions; with a `base`
    its pipeline's class does, and its config translates SDXL's original block names. Alpha is
    folded into B as peft does it: alpha / rank or, rank-stabilised, alpha / sqrt(rank).

    Raises:
        ErasureError: a key is no weight of a denoiser's LoRA, a factor is missing or is no matrix,
            or the block names need a base.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in _converted(file, base).items():
        match = re.fullmatch(rf"(?:(?:{_PARTS})\.)?(.+?)(?:\.lora_([AB])\.weight)?(\.alpha)?", key)
        path, half, alpha = match.groups() if match else (key, None, None)
        value = torch.as_tensor(value)
        matrix = half and value.ndim == 2 and value.is_floating_point()
        if not (value.numel() == 1 if alpha else matrix):
            raise _no_weight(file, key)
        found.setdefault(path, {})["alpha" if alpha else half or ""] = value.float()
    for path, parts in found.items():
        if not {"A", "B"} <= parts.keys():
            raise ErasureError(f"'{file.path}' lacks one of the two LoRA factors of '{path}'.")
        if not 1 <= len(parts["A"]) <= ERASER.rank:
            raise ErasureError(
                f"'{file.path}' changes '{path}' with rank {len(parts['A']):,}; 1 to "
                f"{ERASER.rank:,} are read."
            )
    scale = _scales(file, found)
    return {path: (x["A"], x["B"] * scale[path]) for path, x in found.items()}


def changes_in(file: Opened, denoiser: nn.Module) -> dict[str, Tensor]:
    """Path -> W - W0 (out x in) of the linear layers that a file of weights changes.

    The file holds some or all weights W of a denoiser, named as in diffusers; the denoiser has W0.

    Raises:
        ErasureError: a tensor is none of the denoiser's, something else than weights of linear
            layers is changed, or nothing is.
    """
    linears = {path for path, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    weights = denoiser.state_dict()
    changes: dict[str, Tensor] = {}
    other: dict[str, Tensor] = {}
    for key, value in file.tensors.items():
        name = re.sub(rf"^(?:{_PARTS})\.", "", key)
        if name not in weights or weights[name].shape != value.shape:
            raise ErasureError(
                f"'{file.path}' holds '{key}' ({' x '.join(map(str, value.shape))}), which is no "
                f"weight of the base's '{type(denoiser).__name__}'."
            )
        change = value.float() - weights[name].float().cpu()
        path = name.removesuffix(".weight")
        if change.any() and path in linears:
            changes[path] = change
        elif change.any():
            other[key] = change
    if other:
        raise ErasureError(
            f"'{file.path}' changes more than a LoRA on linear layers can hold: {len(other)} other "
            f"tensors, such as '{next(iter(other))}'."
        )
    if not changes:
        raise ErasureError(f"'{file.path}' holds the base's own weights: it erases nothing.")
    return changes


def _converted(file: Opened, base: Model | None) -> dict[str, Any]:
    """Tensors and alphas with peft's keys; raises if a weight would be lost."""
    tensors = {key.removeprefix(_PEFT): value for key, value in file.tensors.items()}
    for key in tensors:
        if re.match("lora_te|text_encoder|.*dora_scale", key):
            raise _no_weight(file, key)
        if base is None and re.match("lora_unet_(input_blocks|middle_block|output_blocks)_", key):
            raise ErasureError(
                f"'{file.path}' names its blocks as SDXL's original code does; pass the pipeline "
                "it was made for as `base`."
            )
    config = base.denoiser.config if base else None
    diffusers = import_module("diffusers")  # takes seconds, which reading a header need not wait
    loader: Any = diffusers.loaders.StableDiffusionLoraLoaderMixin
    loader = base.source if base and hasattr(base.source, "lora_state_dict") else loader
    try:
        state = loader.lora_state_dict(dict(tensors), unet_config=config, return_alphas=True)
        state, alphas = state if isinstance(state, tuple) else (state, None)
        convert = diffusers.utils.convert_unet_state_dict_to_peft
        found: dict[str, Any] = convert({**state, **(alphas or {})})
        given, kept = (sum(not key.endswith(".alpha") for key in x) for x in (tensors, found))
        if kept < given:
            raise ValueError(f"it holds {given} weights, of which diffusers reads {kept}")
    except Exception as error:  # the converters look up what a file may not hold
        why = " ".join(str(error).split())[:300]
        raise ErasureError(f"diffusers cannot read '{file.path}' as a LoRA: {why}.") from error
    return found


def _no_weight(file: Opened, key: str) -> ErasureError:
    return ErasureError(
        f"'{file.path}' holds '{key}', which is no LoRA weight of a denoiser's linear layer."
    )


def _scales(file: Opened, found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Path -> alpha / rank: from the tensors, else as peft reads the settings, else 1.

    A key of `alpha_pattern` stands for all paths that end in it; the first that matches counts.
    """
    text, source = file.header.get("lora_adapter_metadata", "{}"), f"the header of {file.path}"
    if any(key.startswith(_PEFT) for key in file.tensors):
        source = str(file.path.with_name("adapter_config.json"))
        text = read_text(Path(source), BYTES)
    content = read_json(text, source)
    try:
        read = {re.sub(rf"^(?:{_PARTS})\.", "", key): value for key, value in content.items()}
        patterns = read.get("alpha_pattern") or {}
        slow = any(len(key) > 200 or re.search(r"[*+?{].*[*+?{]", key) for key in patterns)
        if slow or len(patterns) * len(found) > 250_000:
            raise ValueError("its alpha_pattern would take too long to match")
        rules = [(re.compile(rf"(?:.*\.)?(?:{key})"), alpha) for key, alpha in patterns.items()]
        scales = {}
        for path, parts in found.items():
            rank = len(parts["A"])
            matching = (alpha for rule, alpha in rules if rule.fullmatch(path))
            alpha = float(parts.get("alpha", next(matching, read.get("lora_alpha", rank))))
            scales[path] = alpha / (rank**0.5 if read.get("use_rslora") else rank)
            if not abs(alpha) < 1e9:
                raise ValueError(f"alpha is {alpha}")
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError, re.error) as e:
        raise ErasureError(f"'{source}' holds no settings of a LoRA: {first_line(e)}.") from e
    return scales
