"""Concept inversion: a word or text states that are learnt from pictures of the concept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from diffusers_erase.attacks.attack_run import (
    GIVEN_SEEDS,
    AttackRun,
    attack_run,
    base_pictures,
    draw_from_states,
    nth_seed,
)
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt, concept_of
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoising_loss import encode_pictures, minimised
from diffusers_erase.models.embedding_hooks import placeholder_words, word_states
from diffusers_erase.models.model import Model, Pipeline
from diffusers_erase.storage.tensor_cache import digest


@dataclass(frozen=True)
class LearntWord:
    """A new word as its token embeddings; no tokenizer has it."""

    vectors: Tensor
    """Token embeddings, k x width."""
    losses: tuple[float, ...]
    """One per update."""
    evaluations: int
    """Denoiser evaluations of the training: a forward pass counts one, a backward pass two."""

    @property
    def loss(self) -> float:
        """Mean loss of the last tenth of the updates."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)

    @torch.no_grad()
    def states(self, pipe: Pipeline, templates: Sequence[str]) -> Tensor:
        """Text states of the templates with the word for `{}`, P x tokens x width."""
        placeholder = placeholder_words(pipe.tokenizer, templates, len(self.vectors))
        return word_states(pipe, templates, self.vectors, placeholder)


@dataclass(frozen=True)
class LearntStates:
    """Text states that may be those of no text."""

    states: Tensor
    """1 x tokens x width."""
    losses: tuple[float, ...]
    """One per update."""
    evaluations: int
    """Denoiser evaluations of the training: a forward pass counts one, a backward pass two."""


@dataclass(frozen=True)
class Inversion:
    """One word for all prompts, learnt from the base's pictures of them, in the concept's place.

    Circumventing Concept Erasure (arXiv 2308.01508), by `invert`. Its controls are a model that
    never knew the concept and one that lost nothing: inversion also draws concepts that no model
    ever lost.
    """

    concept: Concept | None = None
    """The word replaces its names; the first wanted label if omitted."""
    steps: int = 300
    """Updates; 5,000 with 16 pictures each in the released code."""
    batch: int = 8
    """Latents per update."""
    pictures: int = 16
    """Pictures of the base model to learn from; prompts take turns."""
    learning_rate: float = 0.05
    vectors: int = 1
    """Token embeddings of the word."""
    starts: int = 1
    """Words learnt, of which the one with the lowest loss is used; the first starts at the mean
    of all embeddings, the others around it."""
    seed: int = 0

    name: ClassVar[str] = "inversion"
    access: ClassVar[Access] = "white box"

    def __post_init__(self) -> None:
        _require_positive(self, "steps", "batch", "pictures", "vectors", "starts")

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One picture per case, with the word in its prompt."""
        sampler.model.noise_predictor()
        with attack_run(sampler, cases) as run:
            concept = concept_of(cases, self.concept)
            templates = [template_of(case.prompt, concept) for case in cases]
            given = base_pictures(sampler, training_cases(cases, self.pictures, self.seed))
            with run.charged_to(run.rows):
                words = [self._learnt(sampler, given, templates, k) for k in range(self.starts)]
                word = min(words, key=lambda each: each.loss)
            states = word.states(sampler.pipe, templates)
            draw = partial(draw_from_states, sampler, states, [case.seed for case in cases])
            for row, hit in enumerate(run.attempt(run.rows, draw)):
                run.attempts[row].artefact = f"embedding {digest(word.vectors)}" if hit else ""
            return run.attempts

    def _learnt(
        self,
        sampler: PipelineSampler,
        pictures: Sequence[Image.Image],
        templates: Sequence[str],
        start: int,
    ) -> LearntWord:
        return invert(
            sampler.pipe,
            pictures,
            templates,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            vectors=self.vectors,
            spread=0.5 if start else 0.0,
            seed=nth_seed(self.seed, start),
            precision=sampler.sampling.autocast,
            paired=True,
        )


@dataclass(frozen=True)
class StateInversion:
    """The text states of each prompt, all tokens x width, learnt from the base's pictures of it.

    Every text, and every learnt word, is encoded as such states: as far as its updates reach, this
    bounds from above what any of them draws. By `invert_states`, for each prompt by itself; the
    controls are those of `Inversion`.
    """

    steps: int = 100
    """Updates per prompt."""
    batch: int = 8
    """Latents per update."""
    pictures: int = 16
    """Pictures of the base model to learn from, for each prompt."""
    learning_rate: float = 0.05
    seed: int = 0

    name: ClassVar[str] = "state-inversion"
    access: ClassVar[Access] = "white box"

    def __post_init__(self) -> None:
        _require_positive(self, "steps", "batch", "pictures")

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One picture per case, of the states that were learnt for its prompt."""
        sampler.model.noise_predictor()
        with attack_run(sampler, cases) as run:
            for prompt in dict.fromkeys(case.prompt for case in cases):
                self._attack(run, [row for row in run.rows if cases[row].prompt == prompt])
            return run.attempts

    def _attack(self, run: AttackRun, rows: Sequence[int]) -> None:
        """Attack the cases of one prompt."""
        sampler, cases = run.sampler, [run.cases[row] for row in rows]
        given = base_pictures(sampler, training_cases(cases, self.pictures, self.seed))
        with run.charged_to(rows):
            found = invert_states(
                sampler.pipe,
                given,
                cases[0].prompt,
                steps=self.steps,
                batch=self.batch,
                learning_rate=self.learning_rate,
                seed=self.seed,
                precision=sampler.sampling.autocast,
            )
        states = found.states.expand(len(rows), -1, -1)
        draw = partial(draw_from_states, sampler, states, [case.seed for case in cases])
        for row, hit in zip(rows, run.attempt(rows, draw), strict=True):
            run.attempts[row].artefact = f"states {digest(found.states)}" if hit else ""


def _require_positive(attack: object, *names: str) -> None:
    for name in names:
        if getattr(attack, name) < 1:
            raise ErasureError(
                f"Concept inversion needs `{name}` of 1 or more; got {getattr(attack, name)}."
            )


def training_cases(cases: Sequence[PromptCase], pictures: int, seed: int) -> list[PromptCase]:
    """Cases of the pictures to learn from, with other seeds than those under attack."""
    turns = (cases[i % len(cases)] for i in range(pictures))
    return [replace(a, seed=nth_seed(a.seed + seed + i, GIVEN_SEEDS)) for i, a in enumerate(turns)]


def template_of(prompt: str, concept: Concept) -> str:
    """The prompt with `{}` for the first name of the concept, or after it if it has none.

    Further names are dropped.
    """
    first, *rest = concept.replaced(prompt, "{}").split("{}")
    template = " ".join(f"{first}{{}}{''.join(rest)}".split())
    return template if rest else f"{prompt} {{}}".strip()


def invert(
    pipe: Pipeline,
    pictures: Sequence[Image.Image],
    templates: Sequence[str],
    *,
    steps: int = 300,
    batch: int = 8,
    learning_rate: float = 0.05,
    vectors: int = 1,
    spread: float = 0.0,
    seed: int = 0,
    precision: torch.dtype | None = None,
    paired: bool = False,
) -> LearntWord:
    """argmin_v  E | eps(z_t, t, c(v)) - n |^2,   z_t = √ᾱ_t x_0 + √(1-ᾱ_t) n

    Circumventing Concept Erasure (arXiv 2308.01508) by textual inversion (arXiv 2208.01618): the
    model and its erasers stay as they are, and token embeddings v are learnt with which it denoises
    pictures of the concept. A model that never knew the concept can learn some likeness
    of it too: compare the result with a control.

    The templates (`{}` for the name) take turns. The word is `vectors` token embeddings, which
    start at the mean of all, with noise of `spread`; learning rate and spread are in units of the
    standard deviation of the text encoder's embeddings. With `paired` picture i shows template i
    (modulo their number); else templates and pictures are combined at random.

    Raises:
        ErasureError: no pictures, a template without `{}`, or another kind of pipeline.
    """
    if not pictures or not templates:
        raise ErasureError("Concept inversion learns from pictures and prompts; give some of each.")
    for template in templates:
        if template.count("{}") != 1:
            raise ErasureError(f"The prompt {template!r} needs one '{{}}', for the word.")
    denoiser = Model.of(pipe).noise_predictor(precision=precision)
    clean = encode_pictures(pipe, pictures)
    embeddings = pipe.text_encoder.get_input_embeddings().weight.detach().float()
    mean = embeddings.mean(0)
    deviation = (embeddings - mean).square().mean().sqrt().item()
    generator = torch.Generator().manual_seed(seed)
    word = mean.expand(vectors, -1).clone()
    if spread:
        word += spread * deviation * torch.randn(word.shape, generator=generator).to(word)
    word.requires_grad_()
    placeholder, turns = placeholder_words(pipe.tokenizer, templates, vectors), count()

    def states_of(rows: Tensor) -> Tensor:
        own = rows.tolist() if paired else islice(turns, len(rows))
        prompts = [templates[turn % len(templates)] for turn in own]
        return word_states(pipe, prompts, word, placeholder)

    updates = minimised(
        denoiser,
        clean,
        [word],
        states_of,
        batch=batch,
        learning_rate=learning_rate * deviation,
        generator=generator,
    )
    return LearntWord(word.detach(), tuple(islice(updates, steps)), denoiser.cost)


def invert_states(
    pipe: Pipeline,
    pictures: Sequence[Image.Image],
    prompt: str,
    *,
    steps: int = 100,
    batch: int = 8,
    learning_rate: float = 0.05,
    seed: int = 0,
    precision: torch.dtype | None = None,
) -> LearntStates:
    """argmin_c  E | eps(z_t, t, c) - n |^2,   z_t = √ᾱ_t x_0 + √(1-ᾱ_t) n,   c all text states

    Like `invert`, with the text states c of one prompt, tokens x width, in place of a word. They
    start at those that the pipeline makes of `prompt`; the learning rate is in units of their
    standard deviation.

    Raises:
        ErasureError: no pictures, or another kind of pipeline.
    """
    if not pictures:
        raise ErasureError("Concept inversion learns from pictures; give some.")
    model = Model.of(pipe)
    denoiser = model.noise_predictor(precision=precision)
    clean = encode_pictures(pipe, pictures)
    states = model.encode([prompt]).float().clone()
    deviation = (states - states.mean(1)).square().mean().sqrt().item()
    states.requires_grad_()
    updates = minimised(
        denoiser,
        clean,
        [states],
        lambda rows: states.expand(len(rows), -1, -1),
        batch=batch,
        learning_rate=learning_rate * deviation,
        generator=torch.Generator().manual_seed(seed),
    )
    return LearntStates(states.detach(), tuple(islice(updates, steps)), denoiser.cost)
