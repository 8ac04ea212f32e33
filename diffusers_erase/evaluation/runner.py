"""Draws and judges the cases of a suite with the erasers off and on; a stopped run resumes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import Verdict, require_info, shows_any
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.model import Pipeline
from diffusers_erase.runtime.plugin import erasures_disabled
from diffusers_erase.storage.atomic import whole_file
from diffusers_erase.storage.results import ResultsLog, key_of


Side = Literal["base", "erased"]
"""The model with its erasers off, or on."""


@dataclass(frozen=True)
class Judgement:
    """The detector's verdict on the picture of one case."""

    side: Side
    group: str
    prompt: str
    wanted: tuple[str, ...]
    seed: int
    label: str
    score: float
    valid: bool
    labels: tuple[str, ...]
    ranked: tuple[str, ...]

    @property
    def hit(self) -> bool:
        """True if the picture shows one of the wanted labels, in upper or lower case."""
        return shows_any(self.labels, self.wanted)


@dataclass(frozen=True)
class Runner:
    """Draws and judges cases. Verdicts in the work folder are not made again.

    Memory does not grow with the number of pictures: they are drawn and judged in batches and then
    dropped, except for the first `shown` of each group, which go to `work/pictures`.
    """

    sampler: PipelineSampler
    work: Path | None = None
    """Folder for verdicts and pictures; None stores nothing."""
    accelerator: Accelerator | None = None
    """Its processes share the pictures."""
    progress: bool = True
    shown: int = 6
    """Pictures of each group that are stored for people to look at."""
    title: str = ""
    """Title of the progress bar; the side if empty."""

    def __post_init__(self) -> None:
        if self.work is None and self._processes > 1:
            raise ErasureError(
                f"{self._processes} processes exchange verdicts in a folder; pass it as `work`."
            )
        if self.work is not None:
            require_info(self.sampler.detector, f"A run that is stored in '{self.work}'")

    @property
    def main(self) -> bool:
        """True in the process that writes the common files."""
        return self._rank == 0

    def __call__(self, cases: Sequence[PromptCase], side: Side) -> list[Judgement]:
        """One judgement per case, in the same order.

        Args:
            cases: prompts and seeds.
            side: `base` with all erasers off, `erased` with the erasers that are loaded.

        Raises:
            ErasureError: no cases, the detector fails, or the work folder cannot be written;
                verdicts made until then are stored.
        """
        if not cases:
            raise ErasureError("No cases to draw; a group needs at least one prompt.")
        identity = self.identity(side)
        keys = [key_of(identity=identity, prompt=a.prompt, seed=a.seed) for a in cases]
        log = ResultsLog(self.work, "verdicts", self._rank)
        shown = self._first_of_groups(cases) if self.work else set()
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        # shares and batches must not depend on what is stored: other processes may see it earlier
        # or later, and a picture depends by rounding on those that are drawn with it
        share = sorted(first.items())[self._rank :: self._processes]
        size = self.sampler.sampling.batch
        todo = [
            batch
            for batch in (share[k : k + size] for k in range(0, len(share), size))
            if any(
                key not in log or (i in shown and not self._picture_path(key).is_file())
                for key, i in batch
            )
        ]
        with erasers_off_for_base(self.sampler.pipe, side):
            for batch in self._with_progress(todo, side):
                rows = [cases[i] for _, i in batch]
                pictures = self.sampler.draw([a.prompt for a in rows], [a.seed for a in rows])
                verdicts = self.sampler.judge(pictures)
                for (key, i), picture in zip(batch, pictures, strict=True):
                    if i in shown:
                        self._store_picture(key, picture)
                log.add({key: _to_dict(v) for (key, _), v in zip(batch, verdicts, strict=True)})
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
            log.refresh()
        return [_judgement(side, case, log[key]) for case, key in zip(cases, keys, strict=True)]

    def identity(self, side: Side) -> dict[str, Any]:
        """All that determines verdicts on that side; that of the base is free of its erasers."""
        identity = self.sampler.identity
        return {**identity, "erasers": []} if side == "base" else identity

    def pictures(
        self, cases: Sequence[PromptCase], side: Side
    ) -> list[tuple[PromptCase, Image.Image]]:
        """The stored pictures of a finished run over the same cases, with their cases."""
        identity = self.identity(side)
        pictures = []
        for case in (cases[i] for i in sorted(self._first_of_groups(cases))):
            key = key_of(identity=identity, prompt=case.prompt, seed=case.seed)
            path = self._picture_path(key)
            if path.is_file():
                with Image.open(path) as picture:
                    pictures.append((case, picture.convert("RGB")))
        return pictures

    def _picture_path(self, key: str) -> Path:
        return (self.work or Path()) / "pictures" / f"{key}.png"

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def _processes(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    def _with_progress(
        self, batches: Sequence[Sequence[tuple[str, int]]], side: Side
    ) -> Iterator[Sequence[tuple[str, int]]]:
        quiet = not self.progress or self._rank > 0 or not batches
        total = sum(map(len, batches))
        with tqdm(total=total, desc=self.title or side, unit="picture", disable=quiet) as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch))

    def _first_of_groups(self, cases: Sequence[PromptCase]) -> set[int]:
        """Indices of the first `shown` cases of each group."""
        counts: dict[str, int] = {}
        first = set()
        for i, case in enumerate(cases):
            counts[case.group] = counts.get(case.group, 0) + 1
            if counts[case.group] <= self.shown:
                first.add(i)
        return first

    def _store_picture(self, key: str, picture: Image.Image) -> None:
        path = self._picture_path(key)
        try:
            with whole_file(path) as draft:
                picture.save(draft, format="PNG")
        except OSError as error:
            raise ErasureError(
                f"Cannot store pictures in '{path.parent}': {error.strerror or error}."
            ) from error


def erasers_off_for_base(pipe: Pipeline, side: Side) -> AbstractContextManager[None]:
    """Disables erasers while the base pictures are drawn; does nothing for the erased side."""
    return erasures_disabled(pipe) if side == "base" else nullcontext()


def _to_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "label": verdict.label,
        "score": round(float(verdict.score), 6),
        "valid": bool(verdict.valid),
        "labels": list(verdict.labels),
        "ranked": list(verdict.ranked),
    }


def _judgement(side: Side, case: PromptCase, verdict: Mapping[str, Any]) -> Judgement:
    lists = {name: tuple(verdict[name]) for name in ("labels", "ranked")}
    return Judgement(side, **asdict(case), **{**verdict, **lists})
