"""The target that would hurt least: every candidate is tried on as an edit in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.errors import ErasureError
from diffusers_erase.training.targets import (
    PROBE,
    FixedTarget,
    Nearest,
    TargetContext,
    distances,
    mean_by,
    nearest_words,
)


CLEAR = 1.1
"""A target's distance from the concept is at least so many times that of the prompt without it."""


@dataclass(frozen=True)
class Trial:
    """min over targets of max over their rivals j of  E |eps(z,j) - eps*(z,j)|^2 / E |g*(z,j)|^2

    where the student wears the closed-form edit from the concept to the target (see
    `editing.solving`), z are the concept's own latents, and targets and rivals are the `shortlist`
    nearest words. AGE's game (arXiv 2501.18950) with the turns exchanged: the rival that an erasure
    hurts most decides, and the target is chosen for its sake. No gradient, no chance.

    A word that is hardly farther from the concept than the prompt without the concept (see `CLEAR`)
    is no target: what is answered as such a word may still be taken for the concept.
    """

    vocabulary: Vocabulary
    shortlist: int = 6
    """So many of the nearest words are candidates."""
    synonym: float = Nearest.synonym
    """A word nearer than this is taken for another name of the concept."""
    probe: int = PROBE
    """Latents per concept that candidates are tried on; each costs `shortlist` squared evaluations
    in all."""

    def __post_init__(self) -> None:
        if min(self.shortlist, self.probe) < 1:
            raise ErasureError("`shortlist` and `probe` must be positive.")

    def check(self, concepts: Sequence[Concept]) -> None:
        """Some word must be left."""
        self.vocabulary.candidates(concepts)

    def begin(self, context: TargetContext, *, seed: int = 0) -> FixedTarget:
        """Tries every candidate on, then keeps to the best.

        Raises:
            ErasureError: on this stage nothing can be tried on.
        """
        how = Nearest(self.vocabulary, self.synonym)
        ranked = [list(row) for row in nearest_words(context, how, count=self.shortlist)]
        chosen = []
        for k, (concept, words, hurt) in enumerate(
            zip(context.concepts, ranked, self.hurt(context, ranked), strict=True)
        ):
            scores = dict(zip(words, hurt.tolist(), strict=True))
            best_first = sorted(words, key=scores.__getitem__)
            told = (word for word in best_first if is_clear(context, k, word))
            ranking = {"choice": "trial", "scores": scores, "best": "lowest"}
            chosen.append(ErasedConcept.of(concept, next(told, best_first[0]), **ranking))
        return FixedTarget(context, chosen)

    @torch.no_grad()
    def hurt(self, context: TargetContext, ranked: Sequence[Sequence[str]]) -> list[Tensor]:
        """For every concept, how much the edit to each of its candidates hurts the worst rival."""
        if context.edit is None:
            raise ErasureError("Trial needs a stage with `edit`, by which edits can be tried on.")
        rows, count = context.probe(self.probe), len(context.concepts)
        prompt = context.trajectories.prompt[rows]
        owner = context.concept_of[prompt]
        view = context.trajectories.at(context.denoiser, rows)
        width = max(map(len, ranked))
        columns = [[words[min(k, len(words) - 1)] for words in ranked] for k in range(width)]
        texts = [context.answered(column) for column in columns]
        rivals = [view.answered(states[prompt]) for states in texts]
        there = [rival.teacher("target") for rival in rivals]

        def size(x: Tensor) -> Tensor:
            return mean_by(x.square().mean((1, 2, 3)), owner, count)

        moved = torch.zeros(width, width, count)  # targets x rivals x concepts
        for k, states in enumerate(texts):
            context.edit(context.trajectories.states["concept"], states)
            for j, (rival, score) in enumerate(zip(rivals, there, strict=True)):
                if j != k:
                    apart = size(rival.student("target") - score)
                    moved[k, j] = apart / size(score - view.known["null"])
        own = [moved[: len(words), : len(words), i] for i, words in enumerate(ranked)]
        return [hurt.amax(1) for hurt in own]


def is_clear(context: TargetContext, k: int, word: str) -> bool:
    """Whether concept k can be told from the word as it can from its absence (see `CLEAR`)."""
    apart, absent = distances(context, [word, None], probe=2 * PROBE)[k].tolist()
    clear: bool = apart >= CLEAR * absent
    return clear
