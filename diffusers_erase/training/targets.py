"""Targets, which erased concepts are replaced by: given by the user, or the nearest word."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Prompt, Vocabulary
from diffusers_erase.concepts.candidates import SYNONYM, admissible, proposed
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import Factors
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.trajectories import Trajectories, View
from diffusers_erase.training.inner_loop import InnerLoop, PassiveLoop, Views


PROBE_LATENTS = 4
"""Latents per concept on which a word's distance is measured; each costs one UNet evaluation."""

PROBES_PER_NAME = 2
"""Least number of these latents for each name of a concept."""


@dataclass(frozen=True)
class TargetContext:
    """The erased concepts with their prompts and trajectories, from which targets are chosen."""

    denoiser: Denoiser
    encode: Callable[[Sequence[str]], Tensor]
    """Prompts -> text states, P x tokens x width."""
    concepts: tuple[Concept, ...]
    prompts: tuple[Prompt, ...]
    concept_of: Tensor
    """Index of the concept that each prompt names, P."""
    trajectories: Trajectories
    """Sampled from these prompts."""
    kept: Trajectories | None = None
    """Of the kept prompts, if there are any; not known yet while targets are chosen."""
    guided: int | None = None
    """Number of its latents, the first ones, that lie on guided runs; all if omitted."""
    apply_edit: Callable[[Tensor, Tensor], None] | None = None
    """Sets the student to the closed-form edit that maps the first text states to the second."""
    factors: Callable[[], Mapping[str, Factors]] | None = None
    """Path -> factors of the LoRA as it is now."""
    resampled: bool = False
    """The latents will be sampled anew, so that scores at these are not kept."""
    known: tuple[str, ...] = ()
    """The words that the tokenizer has a token for; any word if empty."""
    pipeline: Any = None
    """The base, whose text encoder an adversary learns words of."""
    known_distances: dict[tuple[str | None, int], Tensor] = field(default_factory=dict)
    """Distances computed so far, by word and number of latents."""

    @cached_property
    def names(self) -> tuple[tuple[int, str], ...]:
        """Each name that stands in a prompt, with the index of its concept."""
        pairs = zip(self.concept_of.tolist(), self.prompts, strict=True)
        return tuple(dict.fromkeys((k, prompt.name) for k, prompt in pairs))

    @cached_property
    def name_of(self) -> Tensor:
        """Index of the name in each prompt, P."""
        pairs = zip(self.concept_of.tolist(), self.prompts, strict=True)
        return torch.tensor([self.names.index((k, prompt.name)) for k, prompt in pairs])

    def states_about(self, targets: Sequence[str | None], *, whole: bool = False) -> Tensor:
        """Text states of the prompts with each concept replaced by its target, or left out.

        With `whole` the target replaces the whole prompt.
        """
        own = [targets[k] for k in self.concept_of.tolist()]
        if whole:
            return self.encode([target or "" for target in own])
        return self.encode([p.about(t) for p, t in zip(self.prompts, own, strict=True)])

    def probe_rows(self, count: int) -> Tensor:
        """Rows of `count` latents of every concept, spread evenly over its guided runs.

        They are divided among its names; more if there are not `PROBES_PER_NAME` for each.
        """
        owner = self.name_of[self.trajectories.prompt[: self.guided]]
        rows = []
        for index, (k, _) in enumerate(self.names):
            own = (owner == index).nonzero()[:, 0]
            share = -(-count // sum(other == k for other, _ in self.names))
            share = min(max(share, min(count, PROBES_PER_NAME)), len(own))
            rows.append(own[torch.linspace(0, len(own) - 1, share).long()])
        return torch.cat(rows)


class TargetState(InnerLoop, Protocol):
    """The targets of one training run: an inner loop that adds the role `target` to `concept`."""

    def with_target(self, view: View) -> View:
        """The view with the states of the present targets in the role `target`."""
        ...


class Target(Protocol):
    """A way to choose targets."""

    def check(self, concepts: Sequence[Concept], vocabulary: Vocabulary | None = None) -> None:
        """Raise an `ErasureError` if no target can be chosen for these concepts this way.

        The vocabulary is the request's: what is preserved.
        """
        ...

    def begin(self, context: TargetContext, *, seed: int) -> TargetState:
        """Choose the first targets of a training run."""
        ...


class Adversary(Protocol):
    """Settings of an inner loop beside the target, such as one that learns a word.

    If it adds a role to the view `concept`, this is its attribute `role`.
    """

    def begin(self, context: TargetContext, *, seed: int) -> InnerLoop:
        """The inner loop of a training run."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The user's own choice: a word, or None for the prompt without the concept."""

    word: str | tuple[str | None, ...] | None = None
    """One for all concepts, or a tuple with one for each."""
    whole: bool = False
    """The word is the whole prompt; `Fixed("", whole=True)` is the empty prompt."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words that were given."""
        given = self.word if isinstance(self.word, tuple) else (self.word,)
        return tuple(word for word in given if word is not None)

    def for_each(self, concepts: Sequence[Concept]) -> tuple[str | None, ...]:
        """The target of each concept."""
        given = self.word if isinstance(self.word, tuple) else (self.word,) * len(concepts)
        if len(given) != len(concepts):
            raise ErasureError(
                f"Name one target, or one for each of {', '.join(repr(c.name) for c in concepts)} "
                f"(a concept that is listed twice counts once); got {len(given)}."
            )
        return given

    def check(self, concepts: Sequence[Concept], vocabulary: Vocabulary | None = None) -> None:
        """Raise unless there is one target for each concept, none of them empty or erased.

        A target in which a concept is named (`blue car`) shows it, unless it is a word of its own:
        one of the vocabulary, such as `fire truck` beside `truck`.
        """
        self.for_each(concepts)
        listed = {word.lower() for word in vocabulary.words} if vocabulary else set()
        for word in self.words if not self.whole else ():
            if not word.strip():
                raise ErasureError(
                    "The target is empty; leave it out for the prompt without the concept."
                )
            for concept in concepts:
                if concept.is_named_by(word):
                    raise ErasureError(
                        f"The target {word!r} is the concept itself; choose another one."
                        if len(concepts) == 1
                        else f"The target {word!r} is a name of '{concept.name}', which is to be "
                        "erased, too; choose another one."
                    )
                if concept.is_named_in(word) and word.lower() not in listed:
                    raise ErasureError(
                        f"The target {word!r} names '{concept.name}' and would still show it; "
                        "choose another one, or list it in the vocabulary if it is a thing of its "
                        "own."
                    )

    def begin(self, context: TargetContext, *, seed: int = 0) -> "FixedTarget":
        """Compute the teacher's scores of the targets once."""
        targets = self.for_each(context.concepts)
        pairs = zip(context.concepts, targets, strict=True)
        choices = [ErasedConcept.of(concept, target) for concept, target in pairs]
        return FixedTarget(context, choices, whole=self.whole)


@dataclass(frozen=True)
class Nearest:
    """The word whose score differs least from the concept's: E |eps*(c) - eps*(k)|^2 / E |g*(c)|^2.

    A near target damages the other concepts least. A word nearer than `synonym` is taken for
    another name of the concept, which would erase nothing.
    """

    vocabulary: Vocabulary
    synonym: float = SYNONYM
    probe: int = PROBE_LATENTS
    """Latents per concept on which a word is compared."""

    def check(self, concepts: Sequence[Concept], vocabulary: Vocabulary | None = None) -> None:
        """Nothing is to be checked: without a candidate the concept is left out."""

    def begin(self, context: TargetContext, *, seed: int = 0) -> "FixedTarget":
        """Compare all words, and take the nearest."""
        pairs = zip(context.concepts, nearest_words(context, self), strict=True)
        return FixedTarget(context, [_nearest(concept, row) for concept, row in pairs])


def _nearest(concept: Concept, row: Mapping[str, float]) -> ErasedConcept:
    if not row:
        return ErasedConcept.left_out(concept)
    return ErasedConcept.of(concept, next(iter(row)), choice="nearest", scores=row, best="lowest")


def nearest_words(
    context: TargetContext, how: Nearest, *, count: int | None = None
) -> list[dict[str, float]]:
    """For each concept, at most `count` words that can be targets -> their distances, in order.

    Words of its own kind that mean none of the erased concepts (`concepts.candidates`).
    """
    concepts, words = context.concepts, how.vocabulary.words
    proposals = [proposed(concept, concepts, words, context.known) for concept in concepts]
    asked = list(dict.fromkeys(word for each in proposals for word in each))
    if not asked:
        return [{} for _ in concepts]
    measured = [
        dict(zip(asked, row.tolist(), strict=True))
        for row in distances(context, asked, probe=how.probe)
    ]
    found = [admissible(k, each, measured, synonym=how.synonym) for k, each in enumerate(proposals)]
    return [dict(islice(row.items(), count)) for row in found]


def distances(
    context: TargetContext, words: Sequence[str | None], *, probe: int = PROBE_LATENTS
) -> Tensor:
    """Min over names c of E |eps*(z,c) - eps*(z,k)|^2 / E |eps*(z,c) - eps*(z,"")|^2

    Concepts x words: distance of the teacher's score of a word k from that of the concept by its
    nearest name c, in the same prompts and at the concept's own latents z, relative to the guidance
    of the concept's prompt.
    """
    rows, count = context.probe_rows(probe), len(context.concepts)
    prompt = context.trajectories.prompt[rows]
    owner = context.name_of[prompt]
    view = context.trajectories.at(context.denoiser, rows)
    concept, null = view.teacher("concept"), view.teacher("null")

    def difference(score: Tensor) -> Tensor:
        return mean_by((score - concept).square().mean((1, 2, 3)), owner, len(context.names))

    of_concept = torch.tensor([k for k, _ in context.names])
    for word in words:
        if (word, probe) not in context.known_distances:
            of_word = view.with_role("target", context.states_about([word] * count)[prompt])
            by_name = difference(of_word.teacher("target")) / difference(null)
            context.known_distances[word, probe] = torch.stack(
                [by_name[of_concept == k].min() for k in range(count)]
            )
    return torch.stack([context.known_distances[word, probe] for word in words], 1)


def mean_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """The mean of the values of each of `count` owners."""
    sums = torch.zeros(count).index_add(0, owner, values.cpu())
    return sums / torch.bincount(owner, minlength=count)


class FixedTarget(PassiveLoop):
    """Targets that do not change; their scores are computed once for latents that stay."""

    def __init__(
        self, context: TargetContext, choices: Sequence[ErasedConcept], *, whole: bool = False
    ) -> None:
        self._choices = tuple(choices)
        self._prompt = context.trajectories.prompt
        self._states = context.states_about([c.target for c in choices], whole=whole)
        self._scores: Tensor | None = None
        if not context.resampled:
            kept = context.trajectories.remember(context.denoiser, "target", self._states)
            self._scores = kept.scores["target"]

    def with_target(self, view: View) -> View:
        """The view with the targets, and their scores if the latents stay."""
        states = self._states[self._prompt[view.rows]]
        scores = None if self._scores is None else self._scores[view.rows]
        return view.with_role("target", states, scores)

    def __call__(self, step: int, views: Views) -> Views:
        """The view `concept` with its targets."""
        return {**views, "concept": self.with_target(views["concept"])}

    def choices(self) -> tuple[ErasedConcept, ...]:
        """The targets."""
        return self._choices


def as_target(target: Any) -> Target:
    """A target as users write it (a word, None, a tuple of these) as a `Target`."""
    if isinstance(target, list):
        target = tuple(target)
    given = target if isinstance(target, tuple) else (target,)
    if all(word is None or isinstance(word, str) for word in given):
        return Fixed(target)
    if isinstance(target, tuple) or not hasattr(target, "begin"):
        raise ErasureError(
            "A target is a word, a tuple with a word or None for each concept, or a way to choose "
            f"it, such as Nearest(vocabulary); got {target!r}."
        )
    way: Target = target
    return way
