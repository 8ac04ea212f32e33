"""Options shared by commands, and the pipeline of a model's name."""

from typing import Annotated, Any

import typer

from diffusers_erase.errors import ErasureError, first_line


ModelName = Annotated[
    str, typer.Option(help="'playground', a folder, or a Hub id of a Stable Diffusion pipeline.")
]
KindName = Annotated[str, typer.Option(help="'object', 'style', 'person' or 'attribute'.")]
Synonym = Annotated[
    list[str] | None, typer.Option(help="Another name of the concept; may be repeated.")
]
Protect = Annotated[
    list[str] | None, typer.Option(help="A prompt that must not change at all; repeatable.")
]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def opened_model(model: str, **parts: Any) -> Any:
    """The pipeline of that name; `parts` go to `from_pretrained`, such as `unet=None`."""
    if model == "playground":
        from diffusers_erase.playground import load_pipeline

        return load_pipeline()
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True, **parts)
    except (OSError, ValueError) as error:
        raise ErasureError(f"Cannot open the model '{model}': {first_line(error)}.") from error
    return pipe.to(device())


def without_denoiser(model: str) -> dict[str, None]:
    """Arguments of `opened_model` that leave out all but text encoders and tokenizers."""
    from diffusers_erase.models.weight_files import denoiser_name

    return {} if model == "playground" else {denoiser_name(model): None, "vae": None}


def own_words(model: str, kind: str) -> Any:
    """The playground's vocabulary of that kind; None for other models."""
    if model != "playground":
        return None
    from diffusers_erase.concepts import Vocabulary
    from diffusers_erase.playground import ARTISTS, COLOURS, OBJECTS

    known = {"style": tuple(ARTISTS.values()), "object": OBJECTS, "attribute": COLOURS}
    return Vocabulary(known[kind]) if kind in known else None


def device() -> str:
    """The device to compute on: CUDA if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
