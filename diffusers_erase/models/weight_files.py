"""The weights that read the text, out of a model's files: no denoiser is built."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import COMPONENTS, architecture
from diffusers_erase.storage.hub import fetch


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
    config = json.loads(fetch(model, "config.json", subfolder=part).read_text(encoding="utf-8"))
    text = architecture(str(config.get("_class_name"))).text
    pattern = re.compile(rf"({text})\.weight")
    found: dict[str, Tensor] = {}
    for path in _files(model, part):
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
    """What a model on disk or on the Hub calls its denoiser: `unet` or `transformer`."""
    index = json.loads(fetch(model, "model_index.json").read_text(encoding="utf-8"))
    return next((name for name in COMPONENTS if name in index), COMPONENTS[0])


def _files(model: str | Path, folder: str) -> list[Path]:
    try:
        index = fetch(model, _INDEX, subfolder=folder)
    except ErasureError:
        return [fetch(model, _WHOLE, subfolder=folder)]
    parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [fetch(model, part, subfolder=folder) for part in parts]
