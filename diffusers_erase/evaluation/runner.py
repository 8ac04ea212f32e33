"""Base and erased, picture by picture: the same pipeline, prompts and seeds, erasers off and on."""

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
from diffusers_erase.runtime.plugin import erasures_disabled
from diffusers_erase.storage.results import ResultsLog, key_of


Side = Literal["base", "erased"]


@dataclass(frozen=True)
class Judgement:
    """One picture that was drawn and judged."""

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
        """Whether one of the wanted labels was seen, in whatever case it is written."""
        return shows_any(self.labels, self.wanted)


@dataclass(frozen=True)
class Runner:
    """Looks at what it is asked for; what was looked at before is not drawn again.

    Memory does not grow with the number of pictures: they are drawn and judged by batches, and
    dropped, but for the first `shown` of a group, which go to `work/pictures`.
    """

    sampler: PipelineSampler
    work: Path | None = None
    """Where verdicts and pictures are kept; None for nowhere."""
    accelerator: Accelerator | None = None
    """Whose processes share the pictures."""
    progress: bool = True
    shown: int = 6
    """So many pictures of a group are kept to be looked at."""
    title: str = ""
    """What the progress bar says; the side if empty."""

    def __post_init__(self) -> None:
        if self.work is None and self._world > 1:
            raise ErasureError(
                f"{self._world} processes share what they see in a folder; name one as `work`."
            )
        if self.work is not None:
            require_info(self.sampler.detector, f"A run that is kept in '{self.work}'")

    @property
    def main(self) -> bool:
        """Whether this is the process that writes what all have in common."""
        return self._rank == 0

    def __call__(self, asked: Sequence[PromptCase], side: Side) -> list[Judgement]:
        """One look for each that is asked for, in their order.

        Args:
            asked: what to draw.
            side: `base` with all erasers off, `erased` as the pipeline is.

        Raises:
            ErasureError: nothing is asked for, the detector fails, or the work folder cannot be
                written; what was found until then is kept.
        """
        if not asked:
            raise ErasureError("There is no prompt to look at; a group needs at least one.")
        identity = self.identity(side)
        keys = [key_of(identity=identity, prompt=a.prompt, seed=a.seed) for a in asked]
        log = ResultsLog(self.work, "verdicts", self._rank)
        shown = self._first_of_groups(asked) if self.work else set()
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        share = sorted(first.items())[self._rank :: self._world]  # whatever others have done by now
        own = [(k, i) for k, i in share if k not in log or self._lacks_picture(k, i in shown)]
        with voice(self.sampler.pipe, side):
            for chunk in self._chunks(own, side):
                rows = [asked[i] for _, i in chunk]
                drawn = self.sampler.draw([a.prompt for a in rows], [a.seed for a in rows])
                found = self.sampler.look(drawn)
                for (key, i), picture in zip(chunk, drawn, strict=True):
                    if i in shown:
                        self._keep(key, picture)
                log.add(
                    {key: _plain(verdict) for (key, _), verdict in zip(chunk, found, strict=True)}
                )
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
            log.refresh()
        return [_look(side, a, log[key]) for a, key in zip(asked, keys, strict=True)]

    def identity(self, side: Side) -> dict[str, Any]:
        """What decides verdicts on that side; the base's is the same whatever is loaded."""
        identity = self.sampler.identity
        return {**identity, "erasers": []} if side == "base" else identity

    def pictures(
        self, asked: Sequence[PromptCase], side: Side
    ) -> list[tuple[PromptCase, Image.Image]]:
        """Those that were kept to be looked at, of a run over the same that is done."""
        identity = self.identity(side)
        found = []
        for i in sorted(self._first_of_groups(asked)):
            path = self.picture(
                key_of(identity=identity, prompt=asked[i].prompt, seed=asked[i].seed)
            )
            if path.is_file():
                with Image.open(path) as picture:
                    found.append((asked[i], picture.convert("RGB")))
        return found

    def picture(self, key: str) -> Path:
        """Where the picture of that key is kept, if it is."""
        return (self.work or Path()) / "pictures" / f"{key}.png"

    @property
    def _rank(self) -> int:
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def _world(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    def _chunks(
        self, todo: Sequence[tuple[str, int]], side: Side
    ) -> Iterator[Sequence[tuple[str, int]]]:
        batch = self.sampler.sampling.batch
        quiet = not self.progress or self._rank > 0 or not todo
        with tqdm(total=len(todo), desc=self.title or side, unit="picture", disable=quiet) as bar:
            for start in range(0, len(todo), batch):
                chunk = todo[start : start + batch]
                yield chunk
                bar.update(len(chunk))

    def _first_of_groups(self, asked: Sequence[PromptCase]) -> set[int]:
        seen: dict[str, int] = {}
        found = set()
        for i, a in enumerate(asked):
            seen[a.group] = seen.get(a.group, 0) + 1
            if seen[a.group] <= self.shown:
                found.add(i)
        return found

    def _lacks_picture(self, key: str, shown: bool) -> bool:
        return shown and not self.picture(key).is_file()

    def _keep(self, key: str, picture: Image.Image) -> None:
        path = self.picture(key)
        draft = path.with_name(f".{path.name}.{self._rank}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(draft, format="PNG")
            draft.replace(path)
        except OSError as error:
            raise ErasureError(
                f"Cannot keep pictures in '{path.parent}': {error.strerror or error}."
            ) from error


def voice(pipe: Any, side: Side) -> AbstractContextManager[None]:
    """In its block the pipeline draws as on that side."""
    return erasures_disabled(pipe) if side == "base" else nullcontext()


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {
        "label": verdict.label,
        "score": round(float(verdict.score), 6),
        "valid": bool(verdict.valid),
        "labels": list(verdict.labels),
        "ranked": list(verdict.ranked),
    }


def _look(side: Side, asked: PromptCase, found: Mapping[str, Any]) -> Judgement:
    lists = {name: tuple(found[name]) for name in ("labels", "ranked")}
    return Judgement(side, **asdict(asked), **{**found, **lists})
