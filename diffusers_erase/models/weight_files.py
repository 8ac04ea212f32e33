"""Weights of the layers that read the text, from a model's files; no denoiser is built."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import COMPONENTS, architecture
from diffusers_erase.storage.atomic import read_text
from diffusers_erase.storage.hub import snapshot


_WHOLE = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_WHOLE}.index.json"


def read_weights(model: str | Path) -> dict[str, Tensor]:
    """Path -> weight (out x width) of every layer that reads the text, as they are on disk.

    Args:
        model: a folder written by a pipeline's `save_pretrained`, or a Hub id.

    Raises:
        ErasureError: the model has no denoiser of a known class, or no safetensors.
    """
    part = denoiser_name(model)
    files = snapshot(model, ("config.json", _INDEX), subfolder=part)
    text = architecture(str(_json(files.path("config.json")).get("_class_name"))).text
    pattern = re.compile(rf"({text})\.weight")
    sharded = (files.folder / _INDEX).is_file()
    names = sorted(set(_json(files.path(_INDEX))["weight_map"].values())) if sharded else [_WHOLE]
    files = snapshot(model, names, subfolder=part, revision=files.commit)
    found: dict[str, Tensor] = {}
    for path in map(files.path, names):
        try:
            with safe_open(path, "pt") as file:
                keys = list(file.keys())
                matches = (match for key in keys if (match := pattern.fullmatch(key)))
                found |= {match[1]: file.get_tensor(match[0]) for match in matches}
        except (SafetensorError, OSError) as error:
            raise ErasureError(f"'{path}' is no readable safetensors file: {error}.") from error
    if not found:
        raise ErasureError(f"The {part} of '{model}' has no layer that reads text.")
    return found


def denoiser_name(model: str | Path) -> str:
    """The name of the denoiser in a model on disk or on the Hub: `unet` or `transformer`."""
    index = _json(snapshot(model, ["model_index.json"]).path("model_index.json"))
    return next((name for name in COMPONENTS if name in index), COMPONENTS[0])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, 64 * 2**20))
    except ValueError as error:
        raise ErasureError(f"'{path}' is no readable JSON: {error}.") from error
    return content if isinstance(content, dict) else {}
