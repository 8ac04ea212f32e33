"""Sweeps: erasers that are made once each and measured with several suites; a stopped one resumes.

Every eraser and every result has a name that contains a digest of all that decides it, and appears
in the folder whole or not at all. So a worker may be killed at any time, and several may share the
folder.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any


try:
    import fcntl
except ImportError:  # Windows; workers that share a folder may do the same twice there
    fcntl = None  # type: ignore[assignment]

from diffusers_erase.editing.recipes import Edit
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import CONFIG_NAME, versions
from diffusers_erase.eraser.config import FORMAT as ERASER_FORMAT
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Attack
from diffusers_erase.evaluation.detector import Detector, info_of
from diffusers_erase.evaluation.evidence import FORMAT as EVIDENCE_FORMAT
from diffusers_erase.evaluation.evidence import Evidence, evaluate
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.evaluation.sampler import (
    PipelineSampler,
    Sampling,
    base_digest,
    scheduler_settings,
)
from diffusers_erase.evaluation.suites import Suite
from diffusers_erase.making.api import erase
from diffusers_erase.making.request import Request
from diffusers_erase.models.model import Model
from diffusers_erase.runtime.plugin import load_erasure, unload_erasures
from diffusers_erase.storage.atomic import slug, whole_file
from diffusers_erase.storage.results import key_of, process_name


PICTURE_SEEDS = 1_000_000
"""Distance of the seeds of pictures of two neighbouring seeds: no picture counts for both."""


@dataclass(frozen=True)
class SweptSuite:
    """A suite, and how an eraser is measured with it."""

    label: str
    """Its name in the table."""
    suite: Suite
    sampling: Sampling
    detector: str
    attacks: tuple[Attack, ...] = ()
    attempts: int = 16

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the suite's prompts ask for, sorted."""
        prompts = [prompt for group in self.suite.groups for prompt in group.prompts]
        return tuple(sorted({label for _, wanted in prompts for label in wanted}))


@dataclass(frozen=True)
class SweptEraser:
    """An eraser to make, and the suites to measure it with."""

    concept: str
    """Name of what it erases in the table."""
    recipe: str
    """Name of its recipe in the table."""
    request: Request
    check: bool
    """Whether pictures are drawn while it is made, and stronger recipes tried (see `erase`)."""
    suites: tuple[SweptSuite, ...]

    @property
    def picture_seed(self) -> int:
        """Seed of the pictures it is measured with."""
        return PICTURE_SEEDS * self.request.seed

    def __str__(self) -> str:
        return f"{self.concept}, {self.recipe}, seed {self.request.seed}"


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep, and the pipeline that its erasers are made from and measured on."""

    pipe: Any
    folder: Path
    detector: Callable[[str, Sequence[str]], Detector]
    """(name, labels of the suite) -> detector; it is called often, and should remember."""
    say: Callable[[str], None] = lambda text: None
    """Called with a line for each result."""

    def results(self, asked: SweptEraser) -> list[Path]:
        """The files of the eraser's results, one for each of its suites; each is an `Evidence`."""
        return [self._result(asked, each) for each in asked.suites]

    def run(self, asked: SweptEraser) -> bool:
        """Make the eraser and measure it, as far as that was not done before.

        False if another worker is at it; nothing is done then.

        Raises:
            ErasureError: it cannot be made or measured; finished results stay.
        """
        if all(path.is_file() for path in self.results(asked)):
            return True
        with self._claim(asked) as ours:
            if not ours:
                return False
            eraser = self._eraser(asked)
            load_erasure(self.pipe, eraser)
            try:
                for each, path in zip(asked.suites, self.results(asked), strict=True):
                    if not path.is_file():
                        with self._timed(f"{asked}, {each.label}"), whole_file(path) as draft:
                            lines = self._measured(asked, each).lines()
                            draft.write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")
            finally:
                unload_erasures(self.pipe)
        return True

    def run_all(self, asked: Sequence[SweptEraser]) -> list[str]:
        """Run each in turn, but those that other workers are at; the errors, in one line each."""
        errors, left = [], list(asked)
        while left:
            taken = []
            for each in left:
                try:
                    if not self.run(each):
                        taken.append(each)
                except ErasureError as error:
                    errors.append(f"{each}: {error}")
                    self.say(errors[-1])
            if len(taken) == len(left):
                break
            left = taken  # these may have been left by a worker that was killed
        return errors

    def require_possible(self, asked: Sequence[SweptEraser]) -> None:
        """Raise for a trained recipe on a model that is not trained, and for a missing detector."""
        untrained = Model.of(self.pipe).untrainable
        for each in asked:
            if untrained and not isinstance(each.request.recipe, Edit):
                raise ErasureError(
                    f"Recipe '{each.recipe}' is trained, and this model is not: {untrained}. Take "
                    "one that is solved, such as 'closed-form'."
                )
            self.results(each)

    def _measured(self, asked: SweptEraser, how: SweptSuite) -> Evidence:
        sampler = PipelineSampler(self.pipe, self.detector(how.detector, how.labels), how.sampling)
        # pictures depend on those drawn beside them by rounding, so verdicts are shared with equal
        # lists of prompts alone: the order in which erasers are measured makes no difference then
        cases = key_of(suite=asdict(how.suite), seed=asked.picture_seed, **asdict(how.sampling))
        runner = Runner(sampler, self.folder / "work" / "verdicts" / cases, progress=False, shown=0)
        return evaluate(
            runner,
            how.suite,
            attacks=how.attacks,
            attempts=how.attempts,
            seed=asked.picture_seed,
        )

    def _eraser(self, asked: SweptEraser) -> EraserAdapter:
        """The eraser of the folder, made there first if it is missing."""
        folder = self._folder(asked)
        if not (folder / CONFIG_NAME).is_file():
            with self._timed(f"{asked}: the eraser"):
                self._make(asked, folder)
        return EraserAdapter.from_pretrained(folder)

    def _make(self, asked: SweptEraser, folder: Path) -> None:
        request, work = asked.request, self.folder / "work"
        own = work / folder.name
        solved = isinstance(request.recipe, Edit)  # without checkpoints; text statistics are shared
        eraser = erase(
            self.pipe,
            request.concepts,
            target=request.target,
            vocabulary=request.vocabulary,
            recipe=request.recipe,
            seed=request.seed,
            check=asked.check,
            allow_weak=True,
            progress=False,
            work=work if solved else own,
        )
        draft = eraser.save_pretrained(own / process_name() / folder.name, overwrite=True)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(folder)
        except OSError:  # another worker was quicker
            if not (folder / CONFIG_NAME).is_file():
                raise
        shutil.rmtree(own, ignore_errors=True)

    @cached_property
    def _base(self) -> dict[str, Any]:
        """The digest of the weights and the settings of the scheduler, for the keys of erasers."""
        scheduler = scheduler_settings(self.pipe.scheduler)
        return {"weights": base_digest(self.pipe), "scheduler": scheduler}

    def _folder(self, asked: SweptEraser) -> Path:
        request = asked.request
        key = key_of(
            base=self._base,
            concepts=[repr(concept) for concept in request.concepts],
            recipe=request.recipe.name,
            numbers=request.recipe.numbers(),
            target=repr(request.target),
            vocabulary=request.vocabulary.words if request.vocabulary else None,
            check=asked.check,
            seed=request.seed,
            format=ERASER_FORMAT,
            version=versions()["diffusers-erase"],
        )
        title = "-".join(slug(concept.name) for concept in request.concepts)[:60]
        return self.folder / "erasers" / f"{title}-{request.recipe.name}-{key[:16]}"

    def _result(self, asked: SweptEraser, how: SweptSuite) -> Path:
        eraser = self._folder(asked).name
        key = key_of(
            eraser=eraser,
            suite=asdict(how.suite),
            sampling=asdict(how.sampling),
            detector=info_of(self.detector(how.detector, how.labels)),
            attacks=[repr(attack) for attack in how.attacks],
            attempts=how.attempts,
            seed=asked.picture_seed,
            format=EVIDENCE_FORMAT,
        )
        return self.folder / "results" / f"{eraser}-{slug(how.suite.name)}-{key[:16]}.jsonl"

    @contextmanager
    def _claim(self, asked: SweptEraser) -> Iterator[bool]:
        """False if another worker has claimed this eraser; a claim ends with its process.

        Where files cannot be locked it is always True: two workers then do the same twice.
        """
        path = self.folder / "work" / "locks" / self._folder(asked).name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:
                pass
            yield True

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Say and log what the block has done, and how long it took."""
        start = time.monotonic()
        yield
        seconds = round(time.monotonic() - start, 1)
        path = self.folder / "log" / f"{process_name()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            ended = datetime.now().astimezone().isoformat(timespec="seconds")
            entry = {"ended": ended, "done": what, "seconds": seconds}
            file.write(json.dumps(entry) + "\n")
        self.say(f"{what}: {seconds} s")
