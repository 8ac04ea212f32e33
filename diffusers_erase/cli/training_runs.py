"""Training runs of the command line: one eraser, or one for each line of a file."""

import csv
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffusers_erase.cli.options import asked_concepts
from diffusers_erase.concepts import Concept, Kind
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.eraser.adapter import EraserAdapter, check_output
from diffusers_erase.eraser.config import CONFIG_NAME
from diffusers_erase.errors import ErasureError
from diffusers_erase.making.api import erase
from diffusers_erase.making.priors import PATTERN
from diffusers_erase.storage.atomic import slug
from diffusers_erase.training.recipes import Recipe
from diffusers_erase.training.targets import as_target


@dataclass(frozen=True)
class TrainingRun:
    """One eraser to make, and the folder it is saved in."""

    concepts: tuple[Concept, ...]
    output: Path
    options: dict[str, Any]
    """Further arguments of `erase`."""

    @property
    def work(self) -> Path:
        """The folder of trajectories and checkpoints, deleted when the eraser is saved."""
        return self.output.with_name(f"{self.output.name}.run")

    @property
    def done(self) -> bool:
        """True if the eraser is saved and the work folder is gone."""
        return (self.output / CONFIG_NAME).is_file() and not self.work.exists()

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse, before anything is computed, a target or a folder that cannot be taken."""
        if self.options.get("target") is not None:
            as_target(self.options["target"]).check(self.concepts, self.options.get("vocabulary"))
        check_output(self.output, overwrite=overwrite)
        inside = {path.name for path in self.work.iterdir()} if self.work.is_dir() else set()
        inside = {name for name in inside if not fnmatchcase(name, PATTERN)}
        if inside - {"cache", "checkpoints"} or self.work.is_file():
            raise ErasureError(
                f"'{self.work}' is the folder for checkpoints of this run, and holds something "
                "else; choose another output."
            )
        if self.work.exists() and not (resume or overwrite):
            raise ErasureError(
                f"'{self.work}' holds an unfinished run; continue it with `--resume`, or start "
                "again with `--overwrite`."
            )

    def run(
        self, pipe: Any, *, overwrite: bool, resume: bool, accelerator: Accelerator | None
    ) -> EraserAdapter:
        """Make the eraser, save it, and delete the work folder."""
        main = accelerator is None or accelerator.is_main_process
        if main and self.work.exists() and not resume:
            shutil.rmtree(self.work)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        solved = isinstance(self.options.get("recipe"), Edit)
        used: dict[str, Any] = {} if solved else {"accelerator": accelerator}
        eraser = erase(pipe, self.concepts, work=self.work, **used, **self.options)
        if accelerator is not None:
            accelerator.wait_for_everyone()  # nobody reads the work folder any more
        if main:
            eraser.save_pretrained(self.output, overwrite=overwrite)
            shutil.rmtree(self.work, ignore_errors=True)
        return eraser


def read_runs(
    path: Path, output: Path, kind: Kind | None, options: dict[str, Any]
) -> list[TrainingRun]:
    """One run for each line of a file: `concept, synonym, synonym -> target`, or without a target.

    A name with a comma stands in double quotes: `"Paris, Texas" -> oak`. Empty lines and lines that
    begin with `#` are skipped. Each eraser gets a folder in `output`, named by its concept.

    Raises:
        ErasureError: there is no such file, no concept in it, a line that cannot be read, or two
            concepts whose erasers would get the same folder.
    """
    try:
        if not path.is_file():  # also for devices, which may never end
            raise FileNotFoundError("there is no such file")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ErasureError(f"Cannot read the concepts '{path}': {error}.") from error
    runs: dict[str, TrainingRun] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        try:
            (name, *synonyms), target = _read_line(line)
            written = f'"{name}"' if line.startswith('"') else name
            again, words = "write a line for each", options.get("vocabulary")
            (asked,) = asked_concepts([written], kind, words, several=again)
            concept = replace(asked, synonyms=tuple(synonyms))
            folder = slug(concept.name)
            if folder == "-":
                raise ErasureError(f"{name!r} has no letter or digit to name a folder by.")
            if folder.casefold() in runs:
                raise ErasureError(f"This names '{folder}' twice; erase it in a run of its own.")
        except ErasureError as error:
            raise ErasureError(f"'{path}', line {number}: {error}") from error
        own = options if target is None else {**options, "target": target}
        runs[folder.casefold()] = TrainingRun((concept,), output / folder, own)
    if not runs:
        raise ErasureError(f"'{path}' names no concept; write one a line.")
    return list(runs.values())


def _read_line(line: str) -> tuple[list[str], str | None]:
    """The names on a line, and the target if there is one."""
    parts = re.split(r"->(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", line)  # outside of quotes
    try:
        names, *targets = (
            next(csv.reader([part.strip()], skipinitialspace=True, strict=True), [""])
            for part in parts
        )
    except csv.Error as error:
        raise ErasureError(f"{line!r} cannot be read: {error}.") from error
    if len(targets) > 1 or any(len(target) != 1 for target in targets):
        raise ErasureError(
            f"{line!r} names more than one target; write one, in double quotes if it has a comma."
        )
    return [name.strip() for name in names], targets[0][0].strip() if targets else None


def run_all(
    runs: Sequence[TrainingRun],
    pipe: Any,
    *,
    overwrite: bool,
    resume: bool,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> None:
    """Make the erasers: one is trained by all processes; of more, each process makes its share."""
    alone = len(runs) == 1
    rank, world = accelerator.process_index, accelerator.num_processes
    own = runs if alone else runs[rank::world]
    for run in own:
        shared = accelerator if alone or world == 1 else None
        eraser = run.run(pipe, overwrite=overwrite, resume=resume, accelerator=shared)
        if not alone or accelerator.is_main_process:
            say(summary_of(run.output, eraser))


def summary_of(output: Path, eraser: EraserAdapter) -> str:
    """The erased concepts with their targets and the scores these were chosen by, for people."""
    lines = []
    for erased in eraser.config.concepts:
        answer = "the same prompt without it" if erased.target is None else f"'{erased.target}'"
        rivals = ", ".join(f"{word} {score:.2g}" for word, score in erased.ranked[:5])
        why = f" ({erased.choice}; {rivals})" if rivals else ""
        lines.append(f"Erased '{erased.name}', answered as {answer}{why}.")
    check = eraser.config.results.get("check", {})
    if check:
        lines.append(f"Checked: {check['verdict']}.")
    return "\n".join([*lines, f"pipe.load_erasure('{output}')"])


def with_numbers(recipe: Recipe | Edit, **numbers: float | None) -> Recipe | Edit:
    """The recipe with those numbers that are not None."""
    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    refuse_unused(recipe, sorted(given.keys() - {f.name for f in fields(recipe)}))
    return replace(recipe, **given)


def refuse_unused(recipe: Recipe | Edit, names: Iterable[str]) -> None:
    """Raise if there are any options that the recipe does not use."""
    if unused := ", ".join(names):
        way = "is solved and not trained" if isinstance(recipe, Edit) else "does not use them"
        raise ErasureError(f"Recipe '{recipe.name}' {way}; leave out {unused}.")
