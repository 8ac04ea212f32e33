"""Attacks that need no gradient: other words, other seeds, other noise, another model's start."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, ClassVar

import torch

from diffusers_erase.attacks.attack_run import Pictures, another, as_base, batches, drawn, recorded
from diffusers_erase.attacks.ddim import descended
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, AttackResult, Attempt, concept_of
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase


@dataclass(frozen=True)
class Paraphrases:
    """The same, said otherwise: in other sentences, and by the concept's other names."""

    templates: tuple[str, ...] = ("a picture of {}", "an image of {}", "{}, {}", "{} and {}")
    """Sentences with `{}` for the prompt; one without is a prompt of its own."""
    concept: Concept | None = None
    """Its synonyms take the place of its name; by the first wanted label it has none."""

    name: ClassVar[str] = "paraphrases"
    access: ClassVar[Access] = "sampler"

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture a sentence and prompt, with the prompt's seed."""
        with recorded(sampler, asked) as record:
            for n, said in enumerate(zip(*(self.of(a.prompt, asked) for a in asked), strict=True)):
                rows = [replace(a, prompt=words) for a, words in zip(asked, said, strict=True)]
                record.tried(record.rows, partial(drawn, sampler, rows), at=f"sentence {n + 1}")
            return record.attempts()

    def of(self, prompt: str, asked: Sequence[PromptCase]) -> list[str]:
        """The other sentences for a prompt: as many for each."""
        concept = concept_of(asked, self.concept)
        synonyms = [concept.replaced(prompt, synonym) for synonym in concept.synonyms]
        return [template.replace("{}", prompt) for template in self.templates] + synonyms


@dataclass(frozen=True)
class SeedSearch:
    """The same prompt again and again, with seeds of its own; the first is the one asked for.

    The control of every other attack: what luck finds for the same money.
    """

    tries: int = 8

    name: ClassVar[str] = "seed-search"
    access: ClassVar[Access] = "sampler"

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ErasureError(f"A seed search tries 1 seed or more; got {self.tries}.")

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """`tries` pictures a prompt, of which the one without the attack is the first."""
        with recorded(sampler, asked) as record:
            record.images = [1 for _ in asked]
            record.found = [int(hit) for hit in record.before]
            for n in range(1, self.tries):
                others = [replace(a, seed=another(a.seed, n)) for a in asked]
                record.tried(record.rows, partial(drawn, sampler, others))
            return record.attempts()


@dataclass(frozen=True)
class Noise:
    """s = η_s σ_t: a sampler that adds more noise on its way than the eraser was made for.

    Erasers made on nearly deterministic trajectories leave the concept within reach of others
    (arXiv 2505.17013). Every variant begins in the latent of the asked seed, so that what is found
    is not the finding of another seed, as in the released loop.
    """

    etas: tuple[float, ...] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
    scales: tuple[float, ...] = (1.0, 1.02, 1.03, 1.04)
    """How many times larger the added noise is than the room that is made for it."""

    name: ClassVar[str] = "noise"
    access: ClassVar[Access] = "sampler"

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture for each pair of an eta and a scale; a success if any of them is."""
        with recorded(sampler, asked) as record:
            for n, (eta, scale) in enumerate(product(self.etas, self.scales), 1):
                walk = partial(descended, sampler, asked, eta=eta, scale=scale, variant=n)
                record.tried(record.rows, walk, at=f"noise {eta:g} x {scale:g}")
            return record.attempts()


@dataclass(frozen=True)
class Completion:
    """eps* for the first k steps, eps from there: the eraser is handed what the base began.

    Whoever has some latent of the concept has such a start (arXiv 2505.17013: 5 and 10 of 50).
    """

    steps: tuple[int, ...] = (1, 2, 3, 5)
    """k, each for a picture."""

    name: ClassVar[str] = "completion"
    access: ClassVar[Access] = "sampler"

    def __post_init__(self) -> None:
        if any(k < 0 for k in self.steps):
            raise ErasureError(f"The base draws 0 steps or more; got {self.steps}.")

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture for each k."""
        with recorded(sampler, asked) as record:
            for k in self.steps:
                record.tried(record.rows, partial(completed, sampler, asked, k), at=f"after {k}")
            return record.attempts()


def completed(sampler: PipelineSampler, asked: Sequence[PromptCase], k: int) -> Pictures:
    """The first k steps by the base: none is the eraser's own picture, all the base's.

    Within one run of the sampler, for those of several steps remember the ones before.
    """
    pictures: Pictures = []
    for rows in batches(sampler, range(len(asked))):
        with ExitStack() as base:
            if k:
                base.enter_context(as_base(sampler.pipe))
            hand_over = partial(_hand_over, base, k)
            some = [asked[row] for row in rows]
            pictures += drawn(sampler, some, callback_on_step_end=hand_over)
    return pictures


def _hand_over(base: ExitStack, k: int, _: Any, step: int, __: Any, tensors: Any) -> Any:
    if step == k - 1:
        base.close()
        torch.clear_autocast_cache()  # it holds the base's weights in half precision
    return tensors


def picture_cost(sampling: Sampling) -> int:
    """UNet evaluations of one picture; schedulers that look twice a step cost more."""
    return sampling.steps * (2 if sampling.guidance > 1 else 1)


def equal_budget(recovery: AttackResult, sampling: Sampling) -> SeedSearch:
    """The seed search that costs as much a prompt as this attack did, rounded up to pictures."""
    each = recovery.evaluations / max(1, len(recovery.attempts))
    return SeedSearch(max(1, math.ceil(each / picture_cost(sampling))))
