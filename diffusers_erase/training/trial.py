"""The target whose erasure damages its rivals least: a closed-form edit to each is tried."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.errors import ErasureError
from diffusers_erase.training.targets import (
    PROBE_LATENTS,
    FixedTarget,
    Nearest,
    TargetContext,
    distances,
    mean_by,
    nearest_words,
)


LEAST_DISTANCE = 1.1
"""Least distance of a target from the concept, relative to that of the prompt without it."""


@dataclass(frozen=True)
class Trial:
    """min over targets of max over their rivals j of  E |eps(z,j) - eps*(z,j)|^2 / E |g*(z,j)|^2

    where the student is the closed-form edit from the concept to the target (see
    `editing.solving`), z are the concept's own latents, and targets and rivals are the `shortlist`
    nearest words. AGE's minimax (arXiv 2501.18950) before training instead of in training, and with
    the roles exchanged: the rival that an erasure damages most decides, and the target is chosen to
    damage it least. No gradients, no random numbers.

    A word that is hardly farther from the concept than the prompt without the concept (see
    `LEAST_DISTANCE`) is no target: its pictures may still be taken for the concept.
    """

    vocabulary: Vocabulary
    shortlist: int = 6
    """Number of candidates, the nearest words."""
    synonym: float = Nearest.synonym
    """A word nearer than this is taken for another name of the concept."""
    probe: int = PROBE_LATENTS
    """Latents per concept on which candidates are tried; each costs `shortlist` squared UNet
    evaluations."""

    def __post_init__(self) -> None:
        if min(self.shortlist, self.probe) < 1:
            raise ErasureError("`shortlist` and `probe` must be positive.")

    def check(self, concepts: Sequence[Concept], vocabulary: Vocabulary | None = None) -> None:
        """Nothing is to be checked: without a candidate the concept is left out."""

    def begin(self, context: TargetContext, *, seed: int = 0) -> FixedTarget:
        """Try every candidate, and take the best."""
        how = Nearest(self.vocabulary, self.synonym)
        ranked: list[list[str]] = [
            list(row) for row in nearest_words(context, how, count=self.shortlist)
        ]
        if not any(ranked):
            return FixedTarget(context, [ErasedConcept.left_out(c) for c in context.concepts])
        damages = self.damage(context, [words or [None] for words in ranked])
        choices = []
        for k, (concept, words) in enumerate(zip(context.concepts, ranked, strict=True)):
            if not words:
                choices.append(ErasedConcept.left_out(concept))
                continue
            scores = dict(zip(words, damages[k].tolist(), strict=True))
            best_first = sorted(words, key=scores.__getitem__)
            far = (word for word in best_first if is_far_enough(context, k, word))
            ranking = {"choice": "trial", "scores": scores, "best": "lowest"}
            choices.append(ErasedConcept.of(concept, next(far, best_first[0]), **ranking))
        return FixedTarget(context, choices)

    @torch.no_grad()
    def damage(
        self, context: TargetContext, ranked: Sequence[Sequence[str | None]]
    ) -> list[Tensor]:
        """For every concept, how much the edit to each candidate damages its worst rival."""
        if context.apply_edit is None:
            raise ErasureError("A trial needs a context with `apply_edit`, which tries the edits.")
        rows, count = context.probe_rows(self.probe), len(context.concepts)
        prompt = context.trajectories.prompt[rows]
        owner = context.concept_of[prompt]
        view = context.trajectories.at(context.denoiser, rows)
        width = max(map(len, ranked))
        columns = [[words[min(k, len(words) - 1)] for words in ranked] for k in range(width)]
        states = [context.states_about(column) for column in columns]
        rivals = [view.with_role("target", each[prompt]) for each in states]
        scores = [rival.teacher("target") for rival in rivals]

        def size(x: Tensor) -> Tensor:
            return mean_by(x.square().mean((1, 2, 3)), owner, count)

        damage = torch.zeros(width, width, count)  # targets x rivals x concepts
        for k, target in enumerate(states):
            context.apply_edit(context.trajectories.states["concept"], target)
            for j, (rival, score) in enumerate(zip(rivals, scores, strict=True)):
                if j != k:
                    change = size(rival.student("target") - score)
                    damage[k, j] = change / size(score - view.teacher("null"))
        own = [damage[: len(words), : len(words), i] for i, words in enumerate(ranked)]
        return [each.amax(1) for each in own]


def is_far_enough(context: TargetContext, k: int, word: str) -> bool:
    """True if the word is as far from concept k as the prompt without it (see `LEAST_DISTANCE`)."""
    distance, absence = distances(context, [word, None], probe=2 * PROBE_LATENTS)[k].tolist()
    far: bool = distance >= LEAST_DISTANCE * absence
    return far
