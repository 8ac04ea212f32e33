"""Targets that adapt: the word that makes the erasure hurt most, from a table or by ascent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.trajectories import View
from diffusers_erase.training.targets import (
    FixedTarget,
    Nearest,
    TargetContext,
    TargetState,
    mean_by,
    nearest_words,
)


@dataclass(frozen=True)
class Adaptive:
    """AGE: the target that makes the erasure hurt most, min over erasers of max over targets.

    (arXiv 2501.18950.) Two forms. `table` needs no gradients: every `every` steps it scores the
    `shortlist` nearest words, by how much the eraser has moved them so far (damage) and by how far
    the concept still is from being answered as them, ranks both, and takes the word with the
    largest sum; deterministic. `minimax` is the paper's: Gumbel-softmax weights over the words'
    text states, one-hot with straight-through gradients or the `top_k` largest, trained by ascent
    on the whole objective.
    """

    vocabulary: Vocabulary
    form: Literal["table", "minimax"] = "table"
    shortlist: int = 8
    """So many of the nearest words are candidates."""
    synonym: float = Nearest.synonym
    """A word nearer than this is taken for another name of the concept."""
    every: int = 20
    """Steps between two looks at the table."""
    distance_weight: float = 1.0
    """Weight of the concept's own term; with 0 damage alone decides, as in the released code."""
    learning_rate: float = 0.05
    """Of the minimax weights' logits."""
    temperature: float = 0.5
    """Of the Gumbel-softmax."""
    top_k: int | None = None
    """How many words are mixed; None for a single one with straight-through gradients."""

    def __post_init__(self) -> None:
        if self.form not in ("table", "minimax"):
            raise ErasureError(f"No adaptive target of form {self.form!r}. Known: minimax, table.")
        if min(self.shortlist, self.every) < 1 or self.temperature <= 0:
            raise ErasureError("`shortlist`, `every` and `temperature` must be positive.")

    def check(self, concepts: Sequence[Concept]) -> None:
        """Some word must be left."""
        self.vocabulary.candidates(concepts)

    def begin(self, context: TargetContext, *, seed: int = 0) -> TargetState:
        """Finds the candidates."""
        how = Nearest(self.vocabulary, self.synonym)
        ranked = nearest_words(context, how, count=self.shortlist)
        return (
            Table(context, self, ranked)
            if self.form == "table"
            else Mixture(context, self, ranked, seed=seed)
        )


class Table:
    """Answers chosen anew now and then from a table of scores."""

    PROBE = 6
    """Latents per concept that the table is filled on."""

    def __init__(
        self, context: TargetContext, how: Adaptive, ranked: Sequence[dict[str, float]]
    ) -> None:
        self.parameters: list[nn.Parameter] = []
        self.context, self.how = context, how
        self.words = [list(row) for row in ranked]
        self.now = [0] * len(ranked)
        """The nearest to begin with, while there is no damage to speak of."""
        self.scores = [dict.fromkeys(row, 0.0) for row in self.words]
        self._rows = context.probe(self.PROBE)
        self._known: dict[tuple[int, ...], FixedTarget] = {}

    def answer(self, view: View, *, learn: bool = False) -> View:
        """As the present choice says; a choice that comes back is looked up."""
        return self._still().answer(view)

    def update(self, step: int) -> None:
        """Every so many steps: choose the words with the highest scores."""
        if step and step % self.how.every == 0:
            for index, scores in enumerate(self.table()):
                self.scores[index] = dict(zip(self.words[index], scores.tolist(), strict=True))
                self.now[index] = int(scores.argmax())

    @torch.no_grad()
    def table(self) -> list[Tensor]:
        """One score per candidate of each concept: rank of damage + weight x rank of distance."""
        context, rows = self.context, self._rows
        owner = context.concept_of[context.trajectories.prompt[rows]]
        prompt = context.trajectories.prompt[rows]
        view = context.trajectories.at(context.denoiser, rows)
        said = view.student("concept")
        damage, distance = [], []
        for k in range(max(map(len, self.words))):
            answers = [words[min(k, len(words) - 1)] for words in self.words]
            seen = view.answered(context.answered(answers)[prompt])
            there = seen.teacher("target")
            count = len(context.concepts)
            moved = (seen.student("target") - there).square().mean((1, 2, 3))
            apart = (said - there).square().mean((1, 2, 3))
            damage.append(mean_by(moved, owner, count))
            distance.append(mean_by(apart, owner, count))
        tables = []
        for index, words in enumerate(self.words):
            hurt, far = (torch.stack(x)[: len(words), index] for x in (damage, distance))
            tables.append(_ranks(hurt) + self.how.distance_weight * _ranks(far))
        return tables

    def climb(self, gain: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        """Nothing learns."""

    def choices(self) -> tuple[ErasedConcept, ...]:
        """The words chosen now, with the table's last scores."""
        rows = zip(self.context.concepts, self.words, self.now, self.scores, strict=True)
        return tuple(
            ErasedConcept.of(concept, words[k], choice="table", scores=scores, best="highest")
            for concept, words, k, scores in rows
        )

    def state(self) -> dict[str, Tensor]:
        """Which words are chosen, and why."""
        scores = {f"scores.{i}": torch.tensor(list(s.values())) for i, s in enumerate(self.scores)}
        return {"now": torch.tensor(self.now), **scores}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.now = state["now"].tolist()
        for i, words in enumerate(self.words):
            self.scores[i] = dict(zip(words, state[f"scores.{i}"].tolist(), strict=True))

    def _still(self) -> FixedTarget:
        key = tuple(self.now)
        if key not in self._known:
            self._known[key] = FixedTarget(self.context, self.choices())
        return self._known[key]


def _ranks(values: Tensor) -> Tensor:
    """0 for the smallest .. 1 for the largest; equal values share their mean rank."""
    below = (values[:, None] > values).float() + 0.5 * (values[:, None] == values).float()
    return (below.sum(1) - 0.5) / max(1, len(values) - 1)


class Mixture:
    """Answers that are learnt: a distribution over candidates for each concept."""

    def __init__(
        self,
        context: TargetContext,
        how: Adaptive,
        ranked: Sequence[dict[str, float]],
        *,
        seed: int,
    ) -> None:
        self.context, self.how, self.seed = context, how, seed
        self.words = [list(row) for row in ranked]
        width = max(map(len, self.words))
        self.logits = nn.Parameter(torch.zeros(len(ranked), width))
        self.parameters: list[nn.Parameter] = [self.logits]
        self._optimiser = torch.optim.Adam(self.parameters, how.learning_rate, maximize=True)
        self._missing = torch.tensor([[k >= len(row) for k in range(width)] for row in self.words])
        self._generator = torch.Generator().manual_seed(seed)
        columns = [[words[min(k, len(words) - 1)] for words in self.words] for k in range(width)]
        self._states = torch.stack([context.answered(column) for column in columns], 1)

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

    def answer(self, view: View, *, learn: bool = False) -> View:
        """Text states mixed anew; the teacher has to be asked."""
        weights = self.weights() if learn else self.weights().detach()
        prompt = self.context.trajectories.prompt[view.rows]
        mixed = weights[self.context.concept_of[prompt]].to(self._states)
        states = torch.einsum("bk,bktw->btw", mixed, self._states[prompt])
        return view.answered(states)

    def update(self, step: int) -> None:
        """Chance depends on the step alone, so that a resumed run draws the same."""
        self._generator.manual_seed(self.seed * 1_000_003 + step)

    def choices(self) -> tuple[ErasedConcept, ...]:
        """The most likely word of each concept, with all odds."""
        odds = self.logits.detach().masked_fill(self._missing, -torch.inf).softmax(1)
        found = []
        for concept, words, row in zip(self.context.concepts, self.words, odds, strict=True):
            scores = dict(zip(words, row.tolist(), strict=False))
            how = {"choice": "minimax", "scores": scores, "best": "highest"}
            found.append(ErasedConcept.of(concept, max(scores, key=scores.__getitem__), **how))
        return tuple(found)

    def climb(self, gain: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        """Adam upwards; the gradient reaches the logits and nothing else."""
        self.logits.grad = mean(torch.autograd.grad(gain, self.logits)[0])
        self._optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """Logits and the optimiser's moments."""
        return {"logits": self.logits.detach(), **self._optimiser.state[self.logits]}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.logits.data.copy_(state["logits"])
        moments = {name: value for name, value in state.items() if name != "logits"}
        self._optimiser.state[self.logits] = moments
