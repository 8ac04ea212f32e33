"""Attacks on the text states alone: toward where the concept's prompts lie, without the UNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusers_erase.attacks.attack_run import SEARCHED, another, drawn_from, recorded
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt, concept_of
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.embedding_hooks import (
    artefact_of,
    free_ids,
    ids_of,
    states_of_ids,
    with_prefix,
)
from diffusers_erase.models.model import Model
from diffusers_erase.storage.tensor_cache import digest


@dataclass(frozen=True)
class EmbeddingShift:
    """c + η v: the prompt's own states, moved further toward the concept (RECE, arXiv 2407.12383).

    One line and no search: what an eraser in the text's space must withstand first.
    """

    etas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    concept: Concept | None = None
    """The first label that is wanted, if omitted."""

    name: ClassVar[str] = "embedding-shift"
    access: ClassVar[Access] = "sampler"

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture an eta."""
        sampler.model.noise_predictor()
        with recorded(sampler, asked) as record:
            states = sampler.model.encode([a.prompt for a in asked])
            v = concept_vector(sampler.pipe, concept_of(asked, self.concept))
            seeds = [a.seed for a in asked]
            for eta in self.etas:
                moved = states + eta * v
                shown = record.tried(
                    record.rows, partial(drawn_from, sampler, moved, seeds), at=f"shift {eta:g}"
                )
                for row, hit in enumerate(shown):
                    if hit and not record.artefacts[row]:
                        record.artefacts[row] = f"embedding {digest(moved[row])}"
            return record.attempts()


@dataclass(frozen=True)
class RingABell:
    """argmin over token ids p of  | c(p) - (c(prompt) + η v) |^2  (Ring-A-Bell, arXiv 2310.10012).

    A genetic search that asks the text encoder alone: it has not seen the eraser, and what it finds
    is carried over to it. The better half of a generation survives as it is, so that the best is
    never lost; in the released code survivors mutate too.
    """

    concept: Concept | None = None
    """The first label that is wanted, if omitted."""
    length: int = 16
    """Tokens after the first; the rest is padding."""
    eta: float = 3.0
    population: int = 100
    """200 as released; so many texts are encoded a generation, by half."""
    generations: int = 300
    """3,000 as released."""
    crossover: float = 0.5
    mutation: float = 0.25
    seed: int = 0
    """Beside the prompt's own."""

    name: ClassVar[str] = "ring-a-bell"
    access: ClassVar[Access] = "white box"

    def __post_init__(self) -> None:
        if self.population < 4 or self.generations < 0 or self.length < 1:
            raise ErasureError(
                "A genetic search needs 4 texts of 1 token or more, and 0 generations or more; got "
                f"{self.population}, {self.length} and {self.generations}."
            )

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture of the best text for each prompt; the UNet is asked for nothing else."""
        sampler.model.noise_predictor()
        with recorded(sampler, asked) as record:
            pipe = sampler.pipe
            v = concept_vector(pipe, concept_of(asked, self.concept))
            targets = sampler.model.encode([a.prompt for a in asked]) + self.eta * v
            ids = torch.stack(
                [
                    self.evolved(pipe, target, seed=another(a.seed + self.seed, SEARCHED))
                    for a, target in zip(asked, targets, strict=True)
                ]
            )
            with torch.no_grad():
                states = states_of_ids(pipe, ids)
            draw = partial(drawn_from, sampler, states, [a.seed for a in asked])
            for row, hit in enumerate(record.tried(record.rows, draw)):
                record.artefacts[row] = artefact_of(pipe, ids[row]) if hit else ""
            return record.attempts()

    @torch.no_grad()
    def evolved(self, pipe: Any, target: Tensor, *, seed: int) -> Tensor:
        """Ids of the text nearest to the states, tokens."""
        chance = torch.Generator().manual_seed(seed)
        free, empty = free_ids(pipe.tokenizer), ids_of(pipe, [""])
        length = min(self.length, empty.shape[1] - 3)

        def whole(genes: Tensor) -> Tensor:
            return with_prefix(empty.expand(len(genes), -1), free[genes])

        def distance(genes: Tensor) -> Tensor:
            states = states_of_ids(pipe, whole(genes))
            return (states - target).float().square().flatten(1).sum(1).cpu()

        size = (self.population, length)
        texts = torch.randint(len(free), size, generator=chance)
        far = distance(texts)
        for _ in range(self.generations):
            best = far.argsort()[: len(texts) // 2]
            texts, far = texts[best], far[best]
            children = self._children(texts, self.population - len(texts), len(free), chance)
            texts, far = torch.cat([texts, children]), torch.cat([far, distance(children)])
        return whole(texts[far.argmin()][None])[0]

    def _children(
        self, parents: Tensor, count: int, tokens: int, chance: torch.Generator
    ) -> Tensor:
        """Beginnings of one parent with ends of another; in some a token is another one."""
        length = parents.shape[1]

        def drawn(high: int, *shape: int) -> Tensor:
            return torch.randint(high, shape, generator=chance)

        first, second = (parents[drawn(len(parents), count)] for _ in range(2))
        cut = torch.where(
            torch.rand(count, generator=chance) < self.crossover, drawn(length, count), length
        )
        children = torch.where(torch.arange(length) < cut[:, None], first, second)
        changed = (torch.rand(count, generator=chance) < self.mutation).nonzero()[:, 0]
        children[changed, drawn(length, len(changed))] = drawn(tokens, len(changed))
        return children


def concept_vector(pipe: Any, concept: Concept) -> Tensor:
    """Mean of c(prompt) - c(prompt without the concept) over its prompts, tokens x width."""
    model, prompts = Model.of(pipe), concept.example_prompts()
    with_it = model.encode([p.text for p in prompts])
    without = model.encode([p.without() for p in prompts])
    v: Tensor = (with_it - without).mean(0)
    return v
