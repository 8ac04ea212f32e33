"""The weights that read the text, out of a model's files: no UNet is built."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusers_erase.crossattention import CROSS_ATTENTION, TEXT_PARTS
from diffusers_erase.errors import ErasureError
from diffusers_erase.hub import fetch


_WHOLE = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_WHOLE}.index.json"


def read_weights(model: str | Path) -> dict[str, Tensor]:
    """Path -> weight (out x width) of every layer that reads the text, as they are on disk.

    Args:
        model: a folder written by a pipeline's `save_pretrained`, or a Hub id.

    Raises:
        ErasureError: the model has no UNet of a known class, or no safetensors.
    """
    config = json.loads(fetch(model, "config.json", subfolder="unet").read_text(encoding="utf-8"))
    attention = CROSS_ATTENTION.get(config.get("_class_name", ""))
    if attention is None:
        raise ErasureError(
            f"'{model}' has a '{config.get('_class_name')}', where no cross-attention is known. "
            f"Supported: {', '.join(CROSS_ATTENTION)}."
        )
    pattern = re.compile(rf"({attention}\.(?:{'|'.join(TEXT_PARTS)}))\.weight")
    found: dict[str, Tensor] = {}
    for path in _files(model):
        try:
            with safe_open(path, "pt") as file:
                keys = list(file.keys())
                matches = (match for key in keys if (match := pattern.fullmatch(key)))
                found |= {match[1]: file.get_tensor(match[0]) for match in matches}
        except (SafetensorError, OSError) as error:
            raise ErasureError(f"'{path}' is no readable safetensors file: {error}.") from error
    if not found:
        raise ErasureError(f"The UNet of '{model}' has no layer that reads text.")
    return found


def _files(model: str | Path) -> list[Path]:
    try:
        index = fetch(model, _INDEX, subfolder="unet")
    except ErasureError:
        return [fetch(model, _WHOLE, subfolder="unet")]
    parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [fetch(model, part, subfolder="unet") for part in parts]
