"""Attacks with the text encoder alone, towards the text states of the concept's prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from diffusers_erase.attacks.attack_run import (
    SEARCH_SEEDS,
    attack_run,
    draw_from_states,
    nth_seed,
)
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt, concept_of
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.embedding_hooks import (
    describe_ids,
    ordinary_ids,
    states_of_ids,
    token_ids,
    with_prefix,
)
from diffusers_erase.models.model import Model, Pipeline
from diffusers_erase.storage.tensor_cache import digest


@dataclass(frozen=True)
class EmbeddingShift:
    """c + η v: the prompt's text states moved further in the concept's direction (RECE).

    See arXiv 2407.12383. It needs no search, so an eraser of text states must resist it first.
    """

    etas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    concept: Concept | None = None
    """The first wanted label if omitted."""

    name: ClassVar[str] = "embedding-shift"
    access: ClassVar[Access] = "sampler"

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One picture per η."""
        sampler.model.noise_predictor()
        with attack_run(sampler, cases) as run:
            states = sampler.model.encode([case.prompt for case in cases])
            v = concept_vector(sampler.pipe, concept_of(cases, self.concept))
            seeds = [case.seed for case in cases]
            for eta in self.etas:
                moved = states + eta * v
                draw = partial(draw_from_states, sampler, moved, seeds)
                for row, hit in enumerate(run.attempt(run.rows, draw, f"shift {eta:g}")):
                    if hit and not run.attempts[row].artefact:
                        run.attempts[row].artefact = f"embedding {digest(moved[row])}"
            return run.attempts


@dataclass(frozen=True)
class RingABell:
    """argmin over token ids p of  | c(p) - (c(prompt) + η v) |^2  (Ring-A-Bell, arXiv 2310.10012).

    A genetic search with the text encoder alone, without the eraser; its result is then tried on
    the erased model. The better half of a generation survives unchanged, so that the best is never
    lost; in the released code survivors mutate too.
    """

    concept: Concept | None = None
    """The first wanted label if omitted."""
    length: int = 16
    """Tokens after the first; the rest is padding."""
    eta: float = 3.0
    population: int = 100
    """Texts per generation, of which half are new; 200 in the released code."""
    generations: int = 300
    """3,000 in the released code."""
    crossover: float = 0.5
    """Probability that a new text has two parents."""
    mutation: float = 0.25
    """Probability that one of its tokens is replaced."""
    seed: int = 0
    """Added to the seed of each case."""

    name: ClassVar[str] = "ring-a-bell"
    access: ClassVar[Access] = "white box"

    def __post_init__(self) -> None:
        if self.population < 4 or self.generations < 0 or self.length < 1:
            raise ErasureError(
                "A genetic search needs a population of 4 or more, a length of 1 or more and 0 "
                f"generations or more; got {self.population}, {self.length} and "
                f"{self.generations}."
            )

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One picture per case, of the best text; the denoiser is used for nothing else."""
        sampler.model.noise_predictor()
        with attack_run(sampler, cases) as run:
            pipe = sampler.pipe
            v = concept_vector(pipe, concept_of(cases, self.concept))
            targets = sampler.model.encode([case.prompt for case in cases]) + self.eta * v
            ids = torch.stack(
                [
                    self.search(pipe, target, seed=nth_seed(case.seed + self.seed, SEARCH_SEEDS))
                    for case, target in zip(cases, targets, strict=True)
                ]
            )
            with torch.no_grad():
                states = states_of_ids(pipe, ids)
            draw = partial(draw_from_states, sampler, states, [case.seed for case in cases])
            for row, hit in enumerate(run.attempt(run.rows, draw)):
                run.attempts[row].artefact = describe_ids(pipe, ids[row]) if hit else ""
            return run.attempts

    @torch.no_grad()
    def search(self, pipe: Pipeline, target: Tensor, *, seed: int) -> Tensor:
        """Token ids of the text whose states are nearest to `target`, tokens."""
        generator = torch.Generator().manual_seed(seed)
        ordinary, empty = ordinary_ids(pipe.tokenizer), token_ids(pipe, [""])
        length = min(self.length, empty.shape[1] - 3)

        def ids_of(texts: Tensor) -> Tensor:
            return with_prefix(empty.expand(len(texts), -1), ordinary[texts])

        def distances(texts: Tensor) -> Tensor:
            states = states_of_ids(pipe, ids_of(texts))
            return (states - target).float().square().flatten(1).sum(1).cpu()

        texts = torch.randint(len(ordinary), (self.population, length), generator=generator)
        far = distances(texts)
        for _ in range(self.generations):
            best = far.argsort()[: len(texts) // 2]
            texts, far = texts[best], far[best]
            children = self._children(texts, self.population - len(texts), len(ordinary), generator)
            texts, far = torch.cat([texts, children]), torch.cat([far, distances(children)])
        return ids_of(texts[far.argmin()][None])[0]

    def _children(
        self, parents: Tensor, count: int, tokens: int, generator: torch.Generator
    ) -> Tensor:
        """Beginnings of one parent with ends of another; some with one token replaced."""
        length = parents.shape[1]

        def random(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=generator)

        first, second = (parents[random(len(parents), count)] for _ in range(2))
        crossed = torch.rand(count, generator=generator) < self.crossover
        cut = torch.where(crossed, random(length, count), length)
        children = torch.where(torch.arange(length) < cut[:, None], first, second)
        mutated = (torch.rand(count, generator=generator) < self.mutation).nonzero()[:, 0]
        children[mutated, random(length, len(mutated))] = random(tokens, len(mutated))
        return children


def concept_vector(pipe: Pipeline, concept: Concept) -> Tensor:
    """Mean of c(prompt) - c(prompt without the concept) over its prompts, tokens x width."""
    model, prompts = Model.of(pipe), concept.example_prompts()
    with_name = model.encode([prompt.text for prompt in prompts])
    without = model.encode([prompt.without() for prompt in prompts])
    v: Tensor = (with_name - without).mean(0)
    return v
