"""Training runs of the command line: one eraser or a file of them, resumable, in a work folder."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffusers_erase.concepts import Concept, Kind
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.eraser.adapter import EraserAdapter, check_output
from diffusers_erase.eraser.config import CONFIG_NAME
from diffusers_erase.errors import ErasureError
from diffusers_erase.making.api import erase
from diffusers_erase.training.recipes import Recipe


@dataclass(frozen=True)
class Run:
    """One eraser to make."""

    concepts: tuple[Concept, ...]
    output: Path
    options: dict[str, Any]
    """What else `erase` is told."""

    @property
    def work(self) -> Path:
        """Where an unfinished run leaves what it has."""
        return self.output.with_name(f"{self.output.name}.run")

    @property
    def done(self) -> bool:
        """Whether the eraser is there and nothing is left to do for it."""
        return (self.output / CONFIG_NAME).is_file() and not self.work.exists()

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse before work is spent.

        Raises:
            ErasureError: the output exists, or an unfinished run that nobody said to go on with, or
                something else where such a run would be.
        """
        check_output(self.output, overwrite=overwrite)
        inside = {path.name for path in self.work.iterdir()} if self.work.is_dir() else set()
        if inside - {"cache", "checkpoints"} or self.work.is_file():
            raise ErasureError(
                f"'{self.work}' is where the run would keep its work, and holds something else; "
                "choose another output."
            )
        if self.work.exists() and not (resume or overwrite):
            raise ErasureError(
                f"'{self.work}' holds an unfinished run; go on with it by `--resume`, or start "
                "anew by `--overwrite`."
            )

    def make(
        self, pipe: Any, *, overwrite: bool, resume: bool, accelerator: Accelerator | None
    ) -> EraserAdapter:
        """Train, save, and clear the work folder away."""
        main = accelerator is None or accelerator.is_main_process
        if main and self.work.exists() and not resume:
            shutil.rmtree(self.work)
        if accelerator is not None:
            accelerator.wait_for_everyone()
        eraser = erase(pipe, self.concepts, work=self.work, accelerator=accelerator, **self.options)
        if accelerator is not None:
            accelerator.wait_for_everyone()  # nobody reads the work folder any more
        if main:
            eraser.save_pretrained(self.output, overwrite=overwrite)
            shutil.rmtree(self.work)
        return eraser


def runs_of(path: Path, output: Path, kind: Kind, options: dict[str, Any]) -> list[Run]:
    """One run per line of a file: `concept, synonym, synonym -> target`, or without the target.

    Empty lines and lines that begin with `#` do not count.

    Raises:
        ErasureError: there is no such file, no concept in it, or one twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ErasureError(f"Cannot read the concepts '{path}': {error}.") from error
    runs = []
    for line in (line for line in lines if line and not line.startswith("#")):
        names, arrow, target = line.partition("->")
        name, *synonyms = (part.strip() for part in names.split(","))
        own = {**options, "target": target.strip()} if arrow else options
        concept = Concept(name, kind, tuple(synonyms))
        runs.append(Run((concept,), output / name.replace(" ", "-"), own))
    if not runs:
        raise ErasureError(f"'{path}' names no concept; write one a line.")
    places = [run.output for run in runs]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise ErasureError(f"'{path}' names '{twice.name}' twice.")
    return runs


def carry_out(
    runs: Sequence[Run],
    pipe: Any,
    *,
    overwrite: bool,
    resume: bool,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> None:
    """Checked runs; several are spread over accelerate's processes, one is shared by them all."""
    alone = len(runs) == 1
    rank, world = accelerator.process_index, accelerator.num_processes
    own = runs if alone else runs[rank::world]
    for run in own:
        shared = accelerator if alone or world == 1 else None
        eraser = run.make(pipe, overwrite=overwrite, resume=resume, accelerator=shared)
        if not alone or accelerator.is_main_process:
            say(told(run.output, eraser))


def told(output: Path, eraser: EraserAdapter) -> str:
    """What was erased, as what it is answered, and why that was chosen."""
    lines = []
    for erased in eraser.config.concepts:
        answer = erased.target or "the same prompt without it"
        rivals = ", ".join(f"{word} {score:.2g}" for word, score in erased.ranked[:5])
        why = f" ({erased.choice}; {rivals})" if rivals else ""
        lines.append(f"Erased '{erased.name}', answered as '{answer}'{why}.")
    return "\n".join([*lines, f"pipe.load_erasure('{output}')"])


def with_numbers(recipe: Recipe | Edit, **numbers: float | None) -> Recipe | Edit:
    """The recipe with the numbers that are not None.

    Raises:
        ErasureError: the recipe has no such number.
    """
    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    foreign = given.keys() - {f.name for f in fields(recipe)}
    if foreign:
        raise ErasureError(
            f"Recipe '{recipe.name}' is solved and not trained; leave out "
            f"{', '.join(sorted(foreign))}."
        )
    return replace(recipe, **given)
