"""An attack under way: what it draws, finds and spends, and a pipeline left as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Attempt
from diffusers_erase.evaluation.detector import shows_any
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.runtime.plugin import erasure_names, erasures_disabled


Pictures = list[Image.Image]


@dataclass
class AttackRun:
    """What was found and spent so far; `rows` are places in `asked`, one for each picture."""

    sampler: PipelineSampler
    asked: Sequence[PromptCase]
    before: list[bool] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    spent: list[int] = field(default_factory=list)
    artefacts: list[str] = field(default_factory=list)
    curves: list[dict[str, float]] = field(default_factory=list)

    @property
    def rows(self) -> list[int]:
        """All of them."""
        return list(range(len(self.asked)))

    @contextmanager
    def paid_by(self, rows: Sequence[int]) -> Iterator[None]:
        """What the UNet does inside the block is shared out among these; to the last evaluation."""
        with counted(self.sampler.model.denoiser) as spent:
            yield
        share, rest = divmod(spent(), len(rows))
        for i, row in enumerate(rows):
            self.spent[row] += share + (i < rest)

    def tried(
        self, rows: Sequence[int], draw: Callable[[], Pictures], at: str | None = None
    ) -> list[bool]:
        """Whether the attack's pictures show what is wanted; `at` names a place of the curve."""
        if not rows:
            return []
        with self.paid_by(rows):
            pictures = draw()
        shown = self.noted(rows, pictures, at)
        for row, hit in zip(rows, shown, strict=True):
            self.found[row] += hit
            self.images[row] += 1
        return shown

    def noted(
        self, rows: Sequence[int], pictures: Sequence[Image.Image], at: str | None = None
    ) -> list[bool]:
        """The same of pictures that are no success of the attack: a control's."""
        verdicts = zip(rows, self.sampler.look(pictures), strict=True)
        shown = [shows_any(verdict.labels, self.asked[row].wanted) for row, verdict in verdicts]
        if at is not None:
            for row, hit in zip(rows, shown, strict=True):
                self.curves[row][at] = float(hit)
        return shown

    def attempts(self) -> list[Attempt]:
        """All that is known now, prompt by prompt."""
        return [
            Attempt(
                a.prompt,
                a.wanted,
                a.seed,
                self.before[i],
                self.before[i] or self.found[i] > 0,
                self.found[i],
                self.images[i],
                self.spent[i],
                self.artefacts[i],
                dict(self.curves[i]),
            )
            for i, a in enumerate(self.asked)
        ]


@contextmanager
def recorded(sampler: PipelineSampler, asked: Sequence[PromptCase]) -> Iterator[AttackRun]:
    """A record that begins with the pictures without the attack.

    Inside the block the pipeline samples with a copy of its scheduler, so that nobody finds another
    walk in it afterwards.

    Raises:
        ErasureError: nothing is asked for.
    """
    if not asked:
        raise ErasureError("There is no prompt to attack with; ask for one at least.")
    pipe, n = sampler.pipe, len(asked)
    scheduler = pipe.scheduler
    pipe.scheduler = deepcopy(scheduler)
    try:
        record = AttackRun(
            sampler, asked, [], [0] * n, [0] * n, [0] * n, [""] * n, [{} for _ in asked]
        )
        with record.paid_by(record.rows):
            pictures = drawn(sampler, asked)
        record.before = record.noted(record.rows, pictures)
        yield record
    finally:
        pipe.scheduler = scheduler


def as_base(pipe: Any) -> AbstractContextManager[None]:
    """Inside the block the pipeline is the base; where it is that already, nothing changes.

    So an attack can ask the base also where somebody else has disabled the erasers, which is how
    its positive control is run.
    """
    return erasures_disabled(pipe) if erasure_names(pipe) else nullcontext()


def drawn(sampler: PipelineSampler, asked: Sequence[PromptCase], **options: Any) -> Pictures:
    """What the pipeline draws as it is, of exactly what is asked."""
    return sampler.draw([a.prompt for a in asked], [a.seed for a in asked], **options)


def originals(sampler: PipelineSampler, asked: Sequence[PromptCase]) -> Pictures:
    """What the base draws."""
    with as_base(sampler.pipe):
        return drawn(sampler, asked)


def drawn_from(sampler: PipelineSampler, states: Tensor, seeds: Sequence[int]) -> Pictures:
    """The same from text states, P x tokens x width, in the place of prompts.

    The empty prompt is encoded by itself, where no hook of an attack is in the encoder.
    """
    how, pipe = sampler.sampling, sampler.pipe
    low, null = getattr(torch, how.precision), sampler.model.encode([""])
    pictures: Pictures = []
    for rows in torch.arange(len(states)).split(how.batch):
        with torch.autocast(null.device.type, low, enabled=low != torch.float32):
            pictures += pipe(
                prompt_embeds=states[rows].to(null),
                negative_prompt_embeds=null.expand(len(rows), -1, -1),
                guidance_scale=how.guidance,
                num_inference_steps=how.steps,
                generator=[torch.Generator().manual_seed(seeds[row]) for row in rows.tolist()],
            ).images
    return pictures


def batches(sampler: PipelineSampler, rows: Sequence[int]) -> Iterator[list[int]]:
    """As many at once as the studio draws."""
    size = sampler.sampling.batch
    return (list(rows[start : start + size]) for start in range(0, len(rows), size))


GIVEN, SEARCHED = 100_000, 200_000
"""So far from the asked seeds are those of pictures an attack is given, and of its own chance."""


def another(seed: int, n: int) -> int:
    """The nth seed beside this one, the 0th itself; others in a row do not meet it soon."""
    return seed + 1_000_003 * n
