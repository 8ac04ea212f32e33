"""The command line: diffusers-erase demo | train | generate.

Heavy imports wait inside the commands, so that help is there at once.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusers_erase.errors import ErasureError


app = typer.Typer(
    help="Erase concepts from diffusion models, as adapters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str, typer.Option(help="'playground', a folder, or a Hub id of a Stable Diffusion pipeline.")
]
Seed = Annotated[int, typer.Option(help="Start of all chance.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for erasers, pictures and report.")] = Path(
        "demo"
    ),
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Erase an object and a style on the playground, and show what it did to everything else."""
    from diffusers_erase.demo import run_demo

    if not run_demo(out, overwrite=overwrite, seed=seed, say=typer.echo):
        raise typer.Exit(1)


@app.command()
def train(
    concept: Annotated[str, typer.Argument(help="What to erase.")],
    out: Annotated[Path, typer.Option(help="Folder for the eraser.")],
    model: Model = "playground",
    target: Annotated[
        str | None, typer.Option(help="What to draw instead; by default the prompt without it.")
    ] = None,
    kind: Annotated[str, typer.Option(help="'object' or 'style'.")] = "object",
    synonym: Annotated[
        list[str] | None, typer.Option(help="Another name of it; may be repeated.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A prompt that must stay; may be repeated.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="'replace' or 'esd'.")] = "replace",
    steps: Annotated[int | None, typer.Option(help="Training steps, if not the recipe's.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train an eraser and save it."""
    from diffusers_erase.adapter import check_output
    from diffusers_erase.concepts import Concept
    from diffusers_erase.making import erase

    check_output(out, overwrite=overwrite)
    what = Concept(concept, kind, tuple(synonym or ()))  # type: ignore[arg-type]
    eraser = erase(
        _open(model), what, target=target, keep=keep or (), recipe=recipe, steps=steps, seed=seed
    )
    eraser.save_pretrained(out, overwrite=overwrite)
    typer.echo(f"Erased '{concept}': pipe.load_erasure('{out}')")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="PNG file.")] = Path("picture.png"),
    model: Model = "playground",
    eraser: Annotated[
        list[str] | None, typer.Option(help="Folder or Hub id; may be repeated.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Of every eraser: 0 off, 1 as made.")] = 1.0,
    count: Annotated[int, typer.Option(min=1, help="Pictures, side by side.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 5.0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw pictures with erasers loaded."""
    from diffusers_erase.evaluation.metrics import draw
    from diffusers_erase.runtime.plugin import load_erasure

    _check_file(out, overwrite=overwrite)
    pipe = _open(model)
    for source in eraser or ():
        load_erasure(pipe, source, name=source, strength=strength)
    pictures = draw(pipe, [prompt] * count, guidance=guidance, steps=steps, seed=seed)
    draft = out.with_name(f".{out.name}.draft")
    _row(pictures).save(draft, format="PNG")
    draft.replace(out)
    typer.echo(f"Wrote {out}")


def _open(model: str) -> Any:
    """The pipeline a user named."""
    if model == "playground":
        from diffusers_erase.playground import load_pipeline

        return load_pipeline()
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ErasureError(f"Cannot open the model '{model}': {reason}") from error
    return pipe.to(_device())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_file(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise ErasureError(f"'{path}' is a folder; name a PNG file.")
    if path.suffix.lower() != ".png":
        raise ErasureError(f"'{path}' does not end in .png; pictures are written as PNG.")
    if path.exists() and not overwrite:
        raise ErasureError(f"'{path}' exists already; choose another file or pass --overwrite.")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ErasureError(f"There is no folder '{path.parent}' one could write '{path.name}' to.")


def _row(pictures: list[Any]) -> Any:
    from PIL import Image

    width, height = pictures[0].size
    row = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * width, 0))
    return row


def _quiet() -> None:
    """Warnings in one line; no chatter of the libraries about optional parts."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"Warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def main() -> None:
    """Run a command; what cannot be done is said in one sentence, with exit code 2."""
    _quiet()
    try:
        app()
    except (ErasureError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
