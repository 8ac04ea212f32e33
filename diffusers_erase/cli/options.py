"""Options shared by commands, and the pipeline of a model's name."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_erase.errors import ErasureError, first_line


ModelName = Annotated[
    str, typer.Option(help="'playground', a folder, or a Hub id of a Stable Diffusion pipeline.")
]
KindName = Annotated[
    str | None,
    typer.Option(
        help="'object', 'style', 'person', 'attribute', 'place' or 'compound'; else inferred."
    ),
]
Synonym = Annotated[
    list[str] | None, typer.Option(help="Another name of the concept; may be repeated.")
]
Protect = Annotated[
    list[str] | None, typer.Option(help="A prompt that must not change at all; repeatable.")
]
PriorSource = Annotated[
    str | None,
    typer.Option(
        help="Statistics of the text encoder, by `diffusers-erase prior`: a file, a folder or a "
        "Hub id."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
CheckOption = Annotated[
    bool,
    typer.Option(
        "--check/--no-check", help="Draw a few pictures, and try again if it is still drawn."
    ),
]
AllowWeak = Annotated[
    bool, typer.Option("--allow-weak", help="Save the eraser also if the concept is still drawn.")
]
Token = Annotated[str | None, typer.Option(help="Hub token, if not that of your login.")]
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


def asked_concepts(
    names: Sequence[str], kind: str | None, words: Any, *, several: str
) -> tuple[Any, ...]:
    """The concepts that are meant; a name in double quotes is taken as it is.

    Args:
        names: as they were written.
        kind: of all of them; None to infer it.
        words: the vocabulary, if one is given.
        several: what to do instead of writing several names in one.
    """
    from diffusers_erase.concepts import Concept, kind_of
    from diffusers_erase.concepts.phrases import names_in
    from diffusers_erase.making.request import as_concepts

    asked: list[Any] = []
    for name in names:
        quoted = re.fullmatch(r'\s*"([^"]+)"\s*', name)
        if quoted:
            asked.append(Concept(quoted[1], kind or kind_of(quoted[1])))  # type: ignore[arg-type]
            continue
        if len(names_in(name)) > 1:
            raise ErasureError(
                f"{name!r} looks like more than one concept; {several}. One name that reads like "
                "this stands in double quotes, which belong to it: '\"Paris, Texas\"'."
            )
        asked.append(name)
    return as_concepts(asked, kind, words, verbose=True)  # type: ignore[arg-type]


def own_words(model: str, concepts: Sequence[Any]) -> Any:
    """The playground's words of the concepts' kinds; None for other models."""
    if model != "playground":
        return None
    from diffusers_erase.concepts import Vocabulary
    from diffusers_erase.playground import ARTISTS, BACKGROUNDS, COLOURS, OBJECTS

    known: dict[str, tuple[str, ...]] = {
        "style": tuple(ARTISTS.values()),
        "attribute": COLOURS,
        "place": BACKGROUNDS,
    }
    words: list[str] = []
    for concept in concepts:
        if concept.kind == "compound":
            words += [f"{colour} {concept.parts[1]}" for colour in COLOURS]
        words += known.get(concept.kind, OBJECTS) if concept.kind != "person" else ()
    return Vocabulary(tuple(dict.fromkeys(words))) if words else None


def kept_folder() -> Path:
    """The folder where statistics of text encoders are kept from one command to the next."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "diffusers-erase"


def device() -> str:
    """The device to compute on: CUDA if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
