"""The state of a running attack, which leaves its pipeline unchanged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Attempt
from diffusers_erase.evaluation.detector import shows_any
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoiser import counted
from diffusers_erase.models.model import Pipeline
from diffusers_erase.runtime.plugin import erasure_names, erasures_disabled


T = TypeVar("T")

GIVEN_SEEDS, SEARCH_SEEDS = 100_000, 200_000
"""Arguments of `nth_seed` for the pictures that an attack is given, and for its own search."""


@dataclass
class AttackRun:
    """The attempts so far, one per case. `rows` are indices of cases, one per picture."""

    sampler: PipelineSampler
    cases: Sequence[PromptCase]
    attempts: list[Attempt]

    @property
    def rows(self) -> list[int]:
        """The indices of all cases."""
        return list(range(len(self.attempts)))

    @contextmanager
    def charged_to(self, rows: Sequence[int]) -> Iterator[None]:
        """Charges denoiser evaluations inside the block to these cases in equal parts."""
        with counted(self.sampler.model.denoiser) as evaluations:
            yield
        share, rest = divmod(evaluations(), len(rows))
        for i, row in enumerate(rows):
            self.attempts[row].evaluations += share + (i < rest)

    def attempt(
        self, rows: Sequence[int], draw: Callable[[], list[Image.Image]], setting: str | None = None
    ) -> list[bool]:
        """Draw one picture of the attack per row, at the rows' cost, and return the hits."""
        if not rows:
            return []
        with self.charged_to(rows):
            pictures = draw()
        hits = self.hits(rows, pictures, setting)
        for row, hit in zip(rows, hits, strict=True):
            attempt = self.attempts[row]
            attempt.images += 1
            attempt.found += hit
            attempt.after = attempt.after or hit
        return hits

    def hits(
        self, rows: Sequence[int], pictures: Sequence[Image.Image], setting: str | None = None
    ) -> list[bool]:
        """Tell for each picture whether it is a hit; it is not counted as the attack's."""
        verdicts = zip(rows, self.sampler.judge(pictures), strict=True)
        hits = [shows_any(verdict.labels, self.attempts[row].wanted) for row, verdict in verdicts]
        for row, hit in zip(rows, hits, strict=True) if setting else ():
            self.attempts[row].curve[str(setting)] = float(hit)
        return hits


@contextmanager
def attack_run(sampler: PipelineSampler, cases: Sequence[PromptCase]) -> Iterator[AttackRun]:
    """An attack run that has drawn and judged the pictures without the attack.

    Inside the block the pipeline samples with a copy of its scheduler, so that the scheduler's
    state is unchanged afterwards.
    """
    if not cases:
        raise ErasureError("No prompt to attack; give at least one case.")
    pipe, scheduler = sampler.pipe, sampler.pipe.scheduler
    attempts = [Attempt(case.prompt, case.wanted, case.seed) for case in cases]
    run = AttackRun(sampler, cases, attempts)
    pipe.scheduler = deepcopy(scheduler)
    try:
        with run.charged_to(run.rows):
            pictures = draw_cases(sampler, cases)
        for attempt, hit in zip(run.attempts, run.hits(run.rows, pictures), strict=True):
            attempt.before = attempt.after = hit
        yield run
    finally:
        pipe.scheduler = scheduler


def base_model(pipe: Pipeline) -> AbstractContextManager[None]:
    """Disables the erasers inside the block; does nothing where they are disabled already.

    So an attack can use the base model within `erasures_disabled`, as its positive control does.
    """
    return erasures_disabled(pipe) if erasure_names(pipe) else nullcontext()


def draw_cases(
    sampler: PipelineSampler, cases: Sequence[PromptCase], **options: Any
) -> list[Image.Image]:
    """One picture per case; `options` are further arguments of the pipeline."""
    return sampler.draw([a.prompt for a in cases], [a.seed for a in cases], **options)


def base_pictures(sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Image.Image]:
    """One picture of the base model per case."""
    with base_model(sampler.pipe):
        return draw_cases(sampler, cases)


def draw_from_states(
    sampler: PipelineSampler, states: Tensor, seeds: Sequence[int]
) -> list[Image.Image]:
    """One picture per text states, P x tokens x width, and seed.

    The empty prompt is encoded first, without the hooks that an attack puts into the encoder.
    """
    settings, pipe = sampler.sampling, sampler.pipe
    null, low = sampler.model.encode([""]), settings.autocast
    pictures: list[Image.Image] = []
    for rows in torch.arange(len(states)).split(settings.batch):
        with torch.autocast(null.device.type, low, enabled=low is not None):
            pictures += pipe(
                prompt_embeds=states[rows].to(null),
                negative_prompt_embeds=null.expand(len(rows), -1, -1),
                guidance_scale=settings.guidance,
                num_inference_steps=settings.steps,
                generator=[torch.Generator().manual_seed(seeds[row]) for row in rows.tolist()],
            ).images
    return pictures


def batches(sampler: PipelineSampler, rows: Sequence[T]) -> Iterator[list[T]]:
    """The rows in batches of the sampler's size."""
    size = sampler.sampling.batch
    return (list(rows[start : start + size]) for start in range(0, len(rows), size))


def nth_seed(seed: int, n: int) -> int:
    """The nth of a sequence of seeds that begins with `seed`; close seeds give disjoint ones."""
    return seed + 1_000_003 * n
