"""Targets that adapt in training: the word that makes the erasure hardest (AGE)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.errors import ErasureError, require_choice
from diffusers_erase.models.trajectories import View
from diffusers_erase.training.inner_loop import Loss, Views
from diffusers_erase.training.targets import (
    FixedTarget,
    Nearest,
    TargetContext,
    TargetState,
    mean_by,
    nearest_words,
)


Form = Literal["table", "minimax"]
"""An adaptive target is chosen from a table of scores, or learnt by gradient ascent."""


@dataclass(frozen=True)
class Adaptive:
    """AGE's target, min over erasers of max over targets of the loss (arXiv 2501.18950).

    `table` needs no gradients and no chance: every `every` steps it scores the `shortlist` nearest
    words by how much the eraser has changed them so far (damage) and by how far the concept still
    is from them, ranks both, and takes the word with the largest sum. `minimax` is the paper's
    form: Gumbel-softmax weights over the words' text states, one-hot with straight-through
    gradients or the `top_k` largest, learnt by gradient ascent on the whole loss.
    """

    vocabulary: Vocabulary
    form: Form = "table"
    shortlist: int = 8
    """Number of candidates, the nearest words."""
    synonym: float = Nearest.synonym
    """A word nearer than this is taken for another name of the concept."""
    every: int = 20
    """Steps between two evaluations of the table; each costs two UNet evaluations for every
    candidate and probed latent."""
    distance_weight: float = 1.0
    """Weight of the concept's distance; with 0 damage alone decides, as in the released code."""
    learning_rate: float = 0.05
    """Learning rate of the logits of the minimax form."""
    temperature: float = 0.5
    """Temperature of the Gumbel-softmax."""
    top_k: int | None = None
    """Number of words that are mixed; None for a single one with straight-through gradients."""

    def __post_init__(self) -> None:
        require_choice("adaptive target of form", self.form, get_args(Form))
        if min(self.shortlist, self.every) < 1 or self.temperature <= 0:
            raise ErasureError("`shortlist`, `every` and `temperature` must be positive.")

    def check(self, concepts: Sequence[Concept], vocabulary: Vocabulary | None = None) -> None:
        """Nothing is to be checked: without a candidate the concept is left out."""

    def begin(self, context: TargetContext, *, seed: int = 0) -> TargetState:
        """Find the candidates."""
        how = Nearest(self.vocabulary, self.synonym)
        ranked = nearest_words(context, how, count=self.shortlist)
        if not any(ranked):
            return FixedTarget(context, [ErasedConcept.left_out(c) for c in context.concepts])
        if self.form == "table":
            return Table(context, self, ranked)
        return Mixture(context, self, ranked, seed=seed)


class Table:
    """Targets chosen anew every few steps from a table of scores."""

    PROBE_LATENTS = 6
    """Latents per concept on which the table is evaluated."""

    def __init__(
        self, context: TargetContext, how: Adaptive, ranked: Sequence[Mapping[str, float]]
    ) -> None:
        self.context, self.how = context, how
        self.words: list[list[str | None]] = [list(row) or [None] for row in ranked]
        self.chosen = [0] * len(ranked)
        """Index of the present target of each concept; the nearest at first, when nothing is
        damaged yet."""
        self.scores = [dict.fromkeys(row, 0.0) for row in self.words]
        self._rows = context.probe_rows(self.PROBE_LATENTS)
        self._fixed: dict[tuple[int, ...], FixedTarget] = {}
        self._step = 0

    def with_target(self, view: View) -> View:
        """The view with the present targets; scores of targets chosen before are looked up."""
        key = tuple(self.chosen)
        if key not in self._fixed:
            self._fixed[key] = FixedTarget(self.context, self.choices())
        return self._fixed[key].with_target(view)

    def __call__(self, step: int, views: Views) -> Views:
        """The view `concept` with its targets, every so many steps after a new choice."""
        if step != self._step and step % self.how.every == 0:
            for index, scores in enumerate(self.table()):
                self.scores[index] = dict(zip(self.words[index], scores.tolist(), strict=True))
                self.chosen[index] = int(scores.argmax())
        self._step = step
        return {**views, "concept": self.with_target(views["concept"])}

    @torch.no_grad()
    def table(self) -> list[Tensor]:
        """For each concept, one score per candidate: rank of damage + weight x rank of distance."""
        context, rows = self.context, self._rows
        prompt = context.trajectories.prompt[rows]
        owner, count = context.concept_of[prompt], len(context.concepts)
        view = context.trajectories.at(context.denoiser, rows)
        concept = view.student("concept")
        damage, distance = [], []
        for k in range(max(map(len, self.words))):
            targets = [words[min(k, len(words) - 1)] for words in self.words]
            of_word = view.with_role("target", context.states_about(targets)[prompt])
            word = of_word.teacher("target")
            damaged = (of_word.student("target") - word).square().mean((1, 2, 3))
            damage.append(mean_by(damaged, owner, count))
            distance.append(mean_by((concept - word).square().mean((1, 2, 3)), owner, count))
        tables = []
        for index, words in enumerate(self.words):
            hurt, far = (torch.stack(x)[: len(words), index] for x in (damage, distance))
            tables.append(_ranks(hurt) + self.how.distance_weight * _ranks(far))
        return tables

    def learn(self, views: Views, loss: Loss, mean: Callable[[Tensor], Tensor]) -> None:
        """Nothing is learnt: the table is evaluated at the beginning of a step."""

    def choices(self) -> tuple[ErasedConcept, ...]:
        """The present targets, with the table's last scores."""
        rows = zip(self.context.concepts, self.words, self.chosen, self.scores, strict=True)
        return tuple(
            _chosen(concept, words[k], scores, "table") for concept, words, k, scores in rows
        )

    def state(self) -> dict[str, Tensor]:
        """The present targets and the scores."""
        scores = {f"scores.{i}": torch.tensor(list(s.values())) for i, s in enumerate(self.scores)}
        return {"chosen": torch.tensor(self.chosen), **scores}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.chosen = state["chosen"].tolist()
        for i, words in enumerate(self.words):
            self.scores[i] = dict(zip(words, state[f"scores.{i}"].tolist(), strict=True))


def _ranks(values: Tensor) -> Tensor:
    """0 for the smallest .. 1 for the largest; equal values share their mean rank."""
    below = (values[:, None] > values).float() + 0.5 * (values[:, None] == values).float()
    return (below.sum(1) - 0.5) / max(1, len(values) - 1)


def _chosen(
    concept: Concept, word: str | None, scores: Mapping[str | None, float], choice: str
) -> ErasedConcept:
    """The concept with this word among others, or without one if there was none."""
    if word is None:
        return ErasedConcept.left_out(concept)
    return ErasedConcept.of(concept, word, choice=choice, scores=dict(scores), best="highest")


class Mixture:
    """Targets that are learnt: for each concept a distribution over candidates."""

    def __init__(
        self,
        context: TargetContext,
        how: Adaptive,
        ranked: Sequence[Mapping[str, float]],
        *,
        seed: int,
    ) -> None:
        self.context, self.how, self.seed = context, how, seed
        self.words: list[list[str | None]] = [list(row) or [None] for row in ranked]
        width = max(map(len, self.words))
        self.logits = nn.Parameter(torch.zeros(len(ranked), width))
        self._optimiser = torch.optim.Adam([self.logits], how.learning_rate, maximize=True)
        self._missing = torch.tensor([[k >= len(row) for k in range(width)] for row in self.words])
        self._generator = torch.Generator().manual_seed(seed)
        self._step: int | None = None
        columns = [[words[min(k, len(words) - 1)] for words in self.words] for k in range(width)]
        self._states = torch.stack([context.states_about(column) for column in columns], 1)

    def weights(self) -> Tensor:
        """A draw of concepts x words: softmax((logits + Gumbel noise) / temperature)."""
        noise = torch.empty_like(self.logits).exponential_(generator=self._generator).log().neg()
        logits = (self.logits + noise).masked_fill(self._missing, -torch.inf)
        soft = (logits / self.how.temperature).softmax(1)
        if self.how.top_k is None:
            hard = nn.functional.one_hot(soft.argmax(1), soft.shape[1]).to(soft)
            return hard + soft - soft.detach()
        largest = soft.topk(min(self.how.top_k, soft.shape[1]), 1)
        kept = torch.zeros_like(soft).scatter(1, largest.indices, largest.values)
        return kept / kept.sum(1, keepdim=True)

    def with_target(self, view: View) -> View:
        """The view with a new draw of targets, which the teacher has to evaluate."""
        return self.mixed(view, self.weights().detach())

    def mixed(self, view: View, weights: Tensor) -> View:
        """The view with text states mixed by these weights (concepts x words) as its target."""
        prompt = self.context.trajectories.prompt[view.rows]
        of_prompt = weights[self.context.concept_of[prompt]].to(self._states)
        return view.with_role(
            "target", torch.einsum("bk,bktw->btw", of_prompt, self._states[prompt])
        )

    def __call__(self, step: int, views: Views) -> Views:
        """The view `concept` with a draw of targets that depends on seed and step alone."""
        if step != self._step:
            self._step = step
            self._generator.manual_seed(self.seed * 1_000_003 + step)
        return {**views, "concept": self.with_target(views["concept"])}

    def learn(self, views: Views, loss: Loss, mean: Callable[[Tensor], Tensor]) -> None:
        """One step of ascent on the loss; the gradient reaches the logits and nothing else."""
        view = self.mixed(views["concept"], self.weights())
        gain = loss({**views, "concept": view})
        self.logits.grad = mean(torch.autograd.grad(gain, self.logits)[0])
        self._optimiser.step()

    def choices(self) -> tuple[ErasedConcept, ...]:
        """The most probable word of each concept, with all probabilities."""
        odds = self.logits.detach().masked_fill(self._missing, -torch.inf).softmax(1)
        found = []
        for concept, words, row in zip(self.context.concepts, self.words, odds, strict=True):
            scores = dict(zip(words, row.tolist(), strict=False))
            best = max(scores, key=scores.__getitem__)
            found.append(_chosen(concept, best, scores, "minimax"))
        return tuple(found)

    def state(self) -> dict[str, Tensor]:
        """Logits, and the moments of their optimiser."""
        return {"logits": self.logits.detach(), **self._optimiser.state[self.logits]}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.logits.data.copy_(state["logits"])
        moments = {name: value for name, value in state.items() if name != "logits"}
        self._optimiser.state[self.logits] = moments
