"""Commands that draw: demo and generate."""

import os
from pathlib import Path
from typing import Annotated

import typer

from diffusers_erase.cli.options import ModelName, Overwrite, Seed, opened_model
from diffusers_erase.errors import ErasureError


def demo(
    out: Annotated[Path, typer.Option(help="Folder for erasers, pictures and report.")] = Path(
        "demo"
    ),
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Erase an object and a style on the playground, and show the effect on everything else."""
    from diffusers_erase.cli.demo import run_demo

    if not run_demo(out, overwrite=overwrite, seed=seed, say=typer.echo):
        raise typer.Exit(1)


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="PNG file.")] = Path("picture.png"),
    model: ModelName = "playground",
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
    from diffusers.utils import make_image_grid

    from diffusers_erase.evaluation.pictures import draw
    from diffusers_erase.runtime.plugin import load_erasure
    from diffusers_erase.storage.atomic import whole_file

    _check_file(out, overwrite=overwrite)
    pipe = opened_model(model)
    for source in eraser or ():
        load_erasure(pipe, source, name=source, strength=strength)
    pictures = draw(pipe, [prompt] * count, guidance=guidance, steps=steps, seed=seed)
    with whole_file(out) as draft:
        make_image_grid(pictures, 1, count).save(draft, format="PNG")
    typer.echo(f"Wrote {out}")


def _check_file(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise ErasureError(f"'{path}' is a folder; name a PNG file.")
    if path.suffix.lower() != ".png":
        raise ErasureError(f"'{path}' does not end in .png; pictures are written as PNG.")
    if path.exists() and not overwrite:
        raise ErasureError(f"'{path}' exists already; choose another file or pass --overwrite.")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ErasureError(f"There is no folder '{path.parent}' one could write '{path.name}' to.")
