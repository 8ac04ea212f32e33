"""The command `sweep`: concepts x recipes x seeds x suites, in one process or in many."""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusers_erase.cli.options import device, opened_model
from diffusers_erase.errors import ErasureError, first_line


if TYPE_CHECKING:
    from diffusers_erase.making.sweep import Sweep, SweptEraser


def sweep(
    plan: Annotated[Path, typer.Argument(help="YAML: model, concepts, recipes, seeds and suites.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for erasers, results and the table.")
    ] = Path("sweep"),
    shard: Annotated[
        str | None,
        typer.Option(
            help="'I/N': only this share of the erasers, I from 0 to N-1; 'N' in a Slurm array, "
            "where I is SLURM_ARRAY_TASK_ID."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Make and measure the erasers on the Ray cluster of this address ('auto', "
            "'local', 'ray://...'); all its nodes see the folder."
        ),
    ] = None,
) -> None:
    """Make every eraser of a plan, measure each with every suite, and write a table.

    What is finished is not done again: call it again after it was stopped or the plan was changed.
    `accelerate launch -m diffusers_erase.cli sweep ...` shares the erasers among processes.
    """
    from datetime import timedelta

    from accelerate import PartialState

    from diffusers_erase.cli.sweep_plan import Plan
    from diffusers_erase.making.sweep_table import write_table

    if ray is not None and shard is not None:
        raise ErasureError("`--ray` spreads the erasers by itself; leave out `--shard`.")
    asked, part, parts = Plan.read(plan), *_shard(shard)
    if out.exists() and not (out / "results").is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise ErasureError(f"'{out}' holds something else than a sweep; choose another folder.")
    (out / "results").mkdir(parents=True, exist_ok=True)
    if ray is not None:
        main, (errors, files) = True, _on_ray(ray, asked.model, asked.erasers, out)
    else:
        # no process waits long for another unless an eraser takes long
        state = PartialState(cpu=device() == "cpu", timeout=timedelta(days=7))
        part, parts = part * state.num_processes + state.process_index, parts * state.num_processes
        made = _opened(asked.model, str(out))
        made.require_possible(asked.erasers)
        count = len(asked.erasers)
        share = asked.erasers[part * count // parts : (part + 1) * count // parts]
        errors = made.run_all(share)
        state.wait_for_everyone()
        main = state.is_main_process
        files = [path for each in asked.erasers for path in made.results(each)]
    missing = sum(not path.is_file() for path in files)
    if not missing and main:
        typer.echo("\n" + write_table(asked.erasers, files, out).rstrip())
        typer.echo(f"Everything is in {out}/; {out / 'work'} may go, or make the next run quicker.")
    if errors:
        raise ErasureError(f"{len(errors)} of the erasers failed; the first: {errors[0]}")
    if missing and main:
        typer.echo(
            f"{len(files) - missing} of {len(files)} results are there; the others are left to "
            "other shares and workers. The last one writes the table; or call this again."
        )


def _shard(text: str | None) -> tuple[int, int]:
    """Index of a share, and number of shares."""
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(?:([0-9]+)/)?([0-9]+)", text)
    index = (found[1] or os.environ.get("SLURM_ARRAY_TASK_ID", "")) if found else ""
    if found is None or not index.isdigit() or int(index) >= int(found[2]):
        raise ErasureError(
            "`--shard` is I/N with I from 0 to N-1, such as 0/4, or N alone in a Slurm array of "
            f"0 to N-1; got {text!r}" + (f" with index {index!r}." if index else ".")
        )
    return int(index), int(found[2])


@lru_cache(maxsize=1)
def _opened(model: str, out: str) -> "Sweep":
    from diffusers_erase.cli.measuring import detector_of
    from diffusers_erase.making.sweep import Sweep

    return Sweep(opened_model(model), Path(out), lru_cache(maxsize=8)(detector_of), typer.echo)


def _on_ray(
    address: str, model: str, asked: Sequence["SweptEraser"], out: Path
) -> tuple[list[str], list[Path]]:
    """Errors, and the files of all results: a task for each eraser.

    The tasks write files, so that the object store holds their names alone. A task whose process
    dies is tried again.
    """
    try:
        import ray
    except ImportError as error:
        raise ErasureError(
            "Ray is not installed: `pip install diffusers-erase[ray]`, or leave out `--ray`."
        ) from error

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ErasureError(f"No Ray cluster at '{address}': {first_line(error)}.") from error
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        work = ray.remote(max_retries=3, num_gpus=gpus)(_on_worker)
        tasks = [work.remote(model, str(out.absolute()), each) for each in asked]
        left, found = dict(zip(tasks, asked, strict=True)), {}
        while left:
            (ready,), _ = ray.wait(list(left), num_returns=1)
            each = left.pop(ready)
            try:
                found[ready] = ray.get(ready)
            except ray.exceptions.RayError as error:  # also what the task has raised
                found[ready] = [f"{each}: {str(error).strip().splitlines()[-1]}"], ["?"]
            typer.echo("\n".join(found[ready][0]) or f"{each}: done")
        errors = [error for task in tasks for error in found[task][0]]
        return errors, [out / "results" / name for task in tasks for name in found[task][1]]
    finally:
        ray.shutdown()


def _on_worker(model: str, out: str, asked: "SweptEraser") -> tuple[list[str], list[str]]:
    """Make and measure one eraser in a process of Ray; errors, and names of the results' files."""
    made = _opened(model, out)
    made.require_possible([asked])
    return made.run_all([asked]), [path.name for path in made.results(asked)]
