"""LoRA files: the keys of peft and kohya, and what others left in theirs."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.eraser.safetensors_io import ERASER, Opened
from diffusers_erase.eraser.schema import read_json
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import (
    COMPONENTS,
    Factors,
    architecture_or_default,
    reads_text,
)


_PARTS = "|".join(COMPONENTS)

_PAIRS: tuple[tuple[str, str], ...] = (
    (rf"(?:(?:{_PARTS})\.)?(?P<path>.+)\.lora_(?P<half>A|B)\.weight", "peft"),
    (rf"(?:(?:{_PARTS})\.)?(?P<path>.+)\.lora\.(?P<half>down|up)\.weight", "diffusers"),
    (
        rf"(?:(?:{_PARTS})\.)?(?P<path>.+\.)processor\.(?P<part>to_q|to_k|to_v|to_out)_lora"
        r"\.(?P<half>down|up)\.weight",
        "diffusers",
    ),
    (r"lora_unet_(?P<path>.+)\.lora_(?P<half>down|up)\.weight", "kohya"),
)
"""Keys of one half of a LoRA, and whose they are."""

_ALPHA = rf"(?:(?:{_PARTS})\.|lora_unet_)?(?P<path>.+)\.alpha"


def peft_keys(factors: Mapping[str, Factors], part: str) -> tuple[dict[str, Tensor], str]:
    """Tensors as `pipe.load_lora_weights` reads them, and the header's `lora_adapter_metadata`.

    Args:
        factors: path -> (A, B).
        part: what pipelines call the denoiser.
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
    return tensors, json.dumps({f"{part}.{key}": value for key, value in lora.items()})


def kohya_keys(factors: Mapping[str, Factors]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as ComfyUI and A1111 read them, and the header by which they are known.

    All are filled up with zeros to one rank, and alpha is that rank: readers disagree about several
    ranks in one file.
    """
    rank = max(len(A) for A, _ in factors.values())
    tensors = {}
    for path, (A, B) in factors.items():
        key = f"lora_unet_{path.replace('.', '_')}"
        filled = rank - len(A)
        tensors[f"{key}.lora_down.weight"] = torch.cat([A, A.new_zeros(filled, A.shape[1])])
        tensors[f"{key}.lora_up.weight"] = torch.cat([B, B.new_zeros(len(B), filled)], 1)
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    width = next((A.shape[1] for path, (A, _) in factors.items() if reads_text(path)), 0)
    family = architecture_or_default("").families.get(width)
    known = {"modelspec.architecture": family.modelspec} if family else {}
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        **known,
    }
    return tensors, header


def holds_lora(file: Opened) -> bool:
    """Whether any of its keys is half of a LoRA."""
    return any(_half(key) for key in file.tensors)


def factors_in(file: Opened, layers: Iterable[str] = ()) -> dict[str, Factors]:
    """Path -> (A, B) of a LoRA file with the keys of peft, diffusers or kohya; float32.

    Alpha is folded into B: B A is what the file adds at scale 1.

    Args:
        file: opened.
        layers: paths there are in the model; kohya's keys are only sure with them.

    Raises:
        ErasureError: a key is none of a denoiser's LoRA, a half is missing or of no matrix.
    """
    by_name = {path.replace(".", "_"): path for path in layers}
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, value in file.tensors.items():
        alpha = re.fullmatch(_ALPHA, key)
        found = None if alpha else _half(key)
        is_alpha = alpha is not None and value.numel() == 1
        if not is_alpha and (found is None or not value.is_floating_point()):
            raise ErasureError(
                f"'{file.path}' holds '{key}', which is no LoRA weight of a denoiser."
            )
        if alpha is not None:
            alphas[_path(alpha["path"], by_name, kohya=key.startswith("lora_unet_"))] = float(value)
            continue
        assert found is not None
        path, half, kohya = found
        if value.ndim != 2:
            raise ErasureError(
                f"'{file.path}' changes '{path}', which is a convolution; an eraser changes linear "
                "layers."
            )
        halves.setdefault(_path(path, by_name, kohya=kohya), {})[half] = value.float()
    idle = [path for path in alphas if path not in halves]
    if idle:
        raise ErasureError(f"'{file.path}' holds an alpha of '{idle[0]}', and no LoRA there.")
    single = [path for path, pair in halves.items() if len(pair) != 2]
    if single:
        raise ErasureError(f"'{file.path}' lacks one of the two LoRA factors of '{single[0]}'.")
    high = [path for path, pair in halves.items() if len(pair["A"]) > ERASER.rank]
    if high:
        raise ErasureError(
            f"'{file.path}' changes '{high[0]}' with rank {len(halves[high[0]]['A']):,}; "
            f"{ERASER.rank:,} is read at most."
        )
    scale = _scales(file, halves, alphas)
    return {path: (pair["A"], pair["B"] * scale(path)) for path, pair in halves.items()}


def changes_in(file: Opened, denoiser: nn.Module) -> dict[str, Tensor]:
    """Path -> W - W0 (out x in) of the linear layers that a file of weights changes.

    Args:
        file: weights of a denoiser, some or all, named as in diffusers.
        denoiser: with the original weights.

    Raises:
        ErasureError: a tensor is none of the denoiser's, something else than weights of linear
            layers is changed, or nothing is.
    """
    linears = {path for path, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
    weights = denoiser.state_dict()
    changes, other = {}, []
    for key, value in file.tensors.items():
        name = re.sub(rf"^(?:{_PARTS})\.", "", key)
        if name not in weights or weights[name].shape != value.shape:
            raise ErasureError(
                f"'{file.path}' holds '{key}' ({' x '.join(map(str, value.shape))}), which is no "
                f"weight of the base's '{type(denoiser).__name__}'."
            )
        change = value.float() - weights[name].float().cpu()
        path = name.removesuffix(".weight")
        if change.any():
            if path in linears:
                changes[path] = change
            else:
                other.append(key)
    if other:
        raise ErasureError(
            f"'{file.path}' changes more than a LoRA on linear layers can hold: {len(other)} other "
            f"tensors, such as '{other[0]}'."
        )
    if not changes:
        raise ErasureError(f"'{file.path}' holds the base's own weights: it erases nothing.")
    return changes


def _half(key: str) -> tuple[str, str, bool] | None:
    """The path, which half, and whether dots are underscores in it."""
    for pattern, whose in _PAIRS:
        match = re.fullmatch(pattern, key)
        if match and not match["path"].startswith("text_encoder"):
            part = match.groupdict().get("part") or ""
            path = match["path"] + ("to_out.0" if part == "to_out" else part)
            half = {"down": "A", "up": "B"}.get(match["half"], match["half"])
            return path, half, whose == "kohya"
    return None


def _path(name: str, by_name: Mapping[str, str], *, kohya: bool) -> str:
    """A path with its dots: looked up, or guessed by how diffusers names its blocks."""
    if not kohya:
        return name
    guessed = re.sub(r"_(\d+)(?=_|$)", r".\1", name)
    guessed = re.sub(r"(?<=\d)_|(?<=mid_block)_|(?<=attn[12])_", ".", guessed)
    return by_name.get(name, guessed)


def _scales(file: Opened, halves: Mapping[str, Any], alphas: Mapping[str, float]) -> Any:
    """Path -> alpha / rank, from the tensors or from the header; 1 where nothing is said.

    For a LoRA that the header calls rank-stabilised, alpha / sqrt(rank).
    """
    said = read_json(file.header.get("lora_adapter_metadata", "{}"), f"the header of {file.path}")
    if not isinstance(said, dict):
        raise ErasureError(f"'{file.path}' has a broken header: {said!r:.99} is no configuration.")
    known = {re.sub(rf"^(?:{_PARTS})\.", "", key): value for key, value in said.items()}
    patterns = known.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ErasureError(f"'{file.path}' has a broken header: {patterns!r:.99} is no pattern.")

    def scale(path: str) -> float:
        rank = len(halves[path]["A"])
        alpha = alphas.get(path, patterns.get(path, known.get("lora_alpha", rank)))
        if not isinstance(alpha, int | float) or not abs(alpha) < 1e9:
            raise ErasureError(f"'{file.path}' has a broken header: alpha is {alpha!r:.99}.")
        return float(alpha) / (rank**0.5 if known.get("use_rslora") else rank)

    return scale
