"""What an erased concept is answered as: chosen by hand, by nearness, by damage, or learnt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffusers_erase.concepts import Concept, Prompt, Vocabulary
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.trajectories import Trajectories, View


@dataclass(frozen=True)
class TargetContext:
    """What a target is chosen on: the erased concepts, met in prompts, and their trajectories."""

    denoiser: Denoiser
    encode: Callable[[Sequence[str]], Tensor]
    """Prompts -> text states, P x tokens x width."""
    concepts: tuple[Concept, ...]
    prompts: tuple[Prompt, ...]
    concept_of: Tensor
    """Which concept each prompt is about, P."""
    trajectories: Trajectories
    """Of these prompts."""
    edit: Callable[[Tensor, Tensor], None] | None = None
    """Lets the student wear the closed-form edit that reads these states as those, if it can."""
    passing: bool = False
    """Whether the latents will be sampled anew, so that scores there are not worth keeping."""
    measured: dict[tuple[str | None, int], Tensor] = field(default_factory=dict)
    """Distances found so far, by word and size of the probe."""

    def answered(self, answers: Sequence[str | None], *, whole: bool = False) -> Tensor:
        """States of the prompts in context: each concept replaced by its answer, or taken out.

        With `whole` the answer is the whole prompt.
        """
        if whole:
            texts = [answers[index] or "" for index in self.concept_of.tolist()]
            return self.encode(texts)
        owners = self.concept_of.tolist()
        texts = [p.about(answers[k]) for p, k in zip(self.prompts, owners, strict=True)]
        return self.encode(texts)

    def probe(self, count: int) -> Tensor:
        """Rows of about `count` latents of every concept, spread evenly over its trajectories."""
        owner = self.concept_of[self.trajectories.prompt]
        rows = []
        for index in range(len(self.concepts)):
            own = (owner == index).nonzero()[:, 0]
            rows.append(own[torch.linspace(0, len(own) - 1, min(count, len(own))).long()])
        return torch.cat(rows)


class TargetState(Protocol):
    """A target at work in one training run."""

    parameters: list[nn.Parameter]
    """What it learns by gradient ascent; empty for most."""

    def answer(self, view: View, *, learn: bool = False) -> View:
        """The view with the role `target`; with gradients to `parameters` if it is to learn."""
        ...

    def update(self, step: int) -> None:
        """Called before every step: the time to change one's mind."""
        ...

    def climb(self, gain: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        """One step of ascent on the objective; `mean` averages a gradient over processes."""
        ...

    def choices(self) -> tuple[ErasedConcept, ...]:
        """The state of the choice, one for each concept."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...


class Target(Protocol):
    """A way to choose targets."""

    def check(self, concepts: Sequence[Concept]) -> None:
        """Refuse, before anything is computed, what cannot be a target for these concepts."""
        ...

    def begin(self, context: TargetContext, *, seed: int) -> TargetState:
        """Start choosing for these concepts."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Somebody's choice: `answer` in the concept's place, None for the prompt without the concept.

    One answer for all concepts, or a tuple with one for each.
    """

    answer: str | tuple[str | None, ...] | None = None
    whole: bool = False
    """Whether the answer is the whole prompt; `Fixed("", whole=True)` is the empty prompt."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words that were named."""
        answers = self.answer if isinstance(self.answer, tuple) else (self.answer,)
        return tuple(answer for answer in answers if answer is not None)

    def check(self, concepts: Sequence[Concept]) -> None:
        """Neither empty, nor the concept itself, nor too few or too many.

        Raises:
            ErasureError: one of these.
        """
        if isinstance(self.answer, tuple) and len(self.answer) != len(concepts):
            raise ErasureError(
                f"Name one target, or one for each concept ({len(concepts)}); "
                f"got {len(self.answer)}."
            )
        for word in self.words if not self.whole else ():
            if not word.strip():
                raise ErasureError(
                    "The target is empty; leave it out for the prompt without the concept."
                )
            if any(concept.is_named_by(word) for concept in concepts):
                raise ErasureError(
                    f"The target {word!r} is the concept itself; choose another one."
                )

    def begin(self, context: TargetContext, *, seed: int = 0) -> "FixedTarget":
        """Scores the answers once."""
        self.check(context.concepts)
        count = len(context.concepts)
        answers = self.answer if isinstance(self.answer, tuple) else (self.answer,) * count
        chosen = [
            ErasedConcept.of(concept, answer)
            for concept, answer in zip(context.concepts, answers, strict=True)
        ]
        return FixedTarget(context, chosen, whole=self.whole)


PROBE = 4
"""So many latents per concept tell how far a word is; each costs one evaluation of the UNet."""


@dataclass(frozen=True)
class Nearest:
    """The word whose score differs least from the concept's: E |eps*(c) - eps*(k)|^2 / E |g*(c)|^2.

    The other concepts are hurt least by a near target; a word nearer than `synonym` is taken for
    another name of the concept, which would erase nothing.
    """

    vocabulary: Vocabulary
    synonym: float = 0.05
    probe: int = PROBE
    """Latents per concept on which a word is compared."""

    def check(self, concepts: Sequence[Concept]) -> None:
        """Some word must be left."""
        self.vocabulary.candidates(concepts)

    def begin(self, context: TargetContext, *, seed: int = 0) -> "FixedTarget":
        """Compares every word, then keeps to the nearest."""
        chosen = []
        for index, ranked in enumerate(nearest_words(context, self)):
            how = {"choice": "nearest", "scores": ranked, "best": "lowest"}
            chosen.append(ErasedConcept.of(context.concepts[index], next(iter(ranked)), **how))
        return FixedTarget(context, chosen)


def nearest_words(
    context: TargetContext, how: Nearest, *, count: int | None = None
) -> list[dict[str, float]]:
    """For each concept the admissible words by distance, nearest first, `count` at most.

    Raises:
        ErasureError: no word is left for a concept.
    """
    words = how.vocabulary.candidates(context.concepts)
    found = distances(context, words, probe=how.probe)
    ranked = []
    for concept, row in zip(context.concepts, found, strict=True):
        order = [k for k in row.argsort().tolist() if row[k] > how.synonym][:count]
        if not order:
            raise ErasureError(
                f"Every word of the vocabulary is a synonym of '{concept.name}' to this model "
                f"(distance below {how.synonym}); add other words."
            )
        ranked.append({words[k]: row[k].item() for k in order})
    return ranked


def distances(context: TargetContext, words: Sequence[str | None], *, probe: int = PROBE) -> Tensor:
    """E |eps*(z,c) - eps*(z,k)|^2 / E |eps*(z,c) - eps*(z,"")|^2 for concepts x words.

    None is the prompt without the concept.

    How far the teacher tells a word from the concept, in the same prompts and at the concept's own
    latents, in units of what the concept's prompt does there at all.
    """
    rows, count = context.probe(probe), len(context.concepts)
    prompt = context.trajectories.prompt[rows]
    owner = context.concept_of[prompt]
    view = context.trajectories.at(context.denoiser, rows)
    concept, null = view.known["concept"], view.known["null"]

    def apart(score: Tensor) -> Tensor:
        return mean_by((score - concept).square().mean((1, 2, 3)), owner, count)

    for word in words:
        if (word, probe) not in context.measured:
            said = view.answered(context.answered([word] * count)[prompt])
            context.measured[word, probe] = apart(said.teacher("target")) / apart(null)
    return torch.stack([context.measured[word, probe] for word in words], 1)


def mean_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """The mean of the values of each of `count` owners."""
    sums = torch.zeros(count).index_add(0, owner, values.cpu())
    return sums / torch.bincount(owner, minlength=count)


class FixedTarget:
    """Answers that do not change: their states, and the scores on latents that stay."""

    def __init__(
        self, context: TargetContext, chosen: Sequence[ErasedConcept], *, whole: bool = False
    ) -> None:
        self.parameters: list[nn.Parameter] = []
        self.chosen = tuple(chosen)
        self._prompt = context.trajectories.prompt
        self._states = context.answered([choice.target for choice in chosen], whole=whole)
        self._scores: Tensor | None = None
        if not context.passing:
            kept = context.trajectories.remember(context.denoiser, "target", self._states)
            self._scores = kept.scores["target"]

    def answer(self, view: View, *, learn: bool = False) -> View:
        """Looked up; of latents that stay nothing is evaluated."""
        states = self._states[self._prompt[view.rows]]
        return view.answered(states, None if self._scores is None else self._scores[view.rows])

    def update(self, step: int) -> None:
        """Nothing changes."""

    def climb(self, gain: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        """Nothing learns."""

    def choices(self) -> tuple[ErasedConcept, ...]:
        """The choices."""
        return self.chosen

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""


def as_target(target: Any) -> Target:
    """A target as users write it: a word, None, a tuple of these, or a target object."""
    return Fixed(target) if target is None or isinstance(target, str | tuple) else target
