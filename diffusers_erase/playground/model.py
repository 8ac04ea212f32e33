"""The playground's Stable Diffusion: the real classes, small enough for a laptop."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline


WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the shipped weights, which `python -m diffusers_erase.playground.building` made."""


def load_pipeline(
    folder: str | Path | None = None, *, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """A fresh StableDiffusionPipeline of the playground: 64 x 64 pictures, 24 tokens, DDIM.

    The folder is one written by `playground.building`; by default the shipped weights, in float16.

    Raises:
        FileNotFoundError: the folder holds no pipeline; the message says how to get one.
    """
    folder = Path(folder) if folder is not None else WEIGHTS / "pipeline"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"There is no pipeline in '{folder}'; install diffusers_erase again, or build one in "
            "its repository with `python -m diffusers_erase.playground.building`."
        )
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if folder == WEIGHTS / "pipeline":
        pipe.register_to_config(_name_or_path="diffusers_erase.playground")
    pipe.set_progress_bar_config(disable=True)
    loaded: StableDiffusionPipeline = pipe
    return loaded
