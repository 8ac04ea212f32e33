"""The command line: diffusers-erase demo | train | edit | generate | evaluate | push | pull | ...

Heavy imports wait inside the commands, so that help is there at once.
"""

import os
import sys
import warnings
from typing import Any

import typer

from diffusers_erase.cli import drawing, making, measuring, sharing, sweeping
from diffusers_erase.errors import ErasureError


app = typer.Typer(
    help="Erase concepts from diffusion models, as adapters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    drawing.demo,
    making.train,
    making.edit,
    making.prior,
    making.stack,
    drawing.generate,
    measuring.evaluate,
    measuring.attack,
    measuring.graph,
    measuring.continual,
    sweeping.sweep,
    sharing.info,
    sharing.verify,
    sharing.push,
    sharing.pull,
    sharing.find,
):
    app.command()(command)


def _quiet() -> None:
    """Print warnings in one line, and silence the libraries' messages about optional parts."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"Warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def main() -> None:
    """Run a command; an `ErasureError` is printed as one sentence, with exit code 2."""
    _quiet()
    try:
        app()
    except (ErasureError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
