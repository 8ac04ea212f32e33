"""What an attack is, and what it got back: prompt by prompt, and as rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase


Access = Literal["sampler", "white box", "fine-tune"]
"""What one who attacks is given: prompts, seeds and sampler; gradients too; the right to train."""


@dataclass(frozen=True)
class Attempt:
    """One prompt under attack."""

    prompt: str
    wanted: tuple[str, ...]
    seed: int
    before: bool
    """Whether the erased model showed it without the attack."""
    after: bool
    """Whether it is shown at all: before, or in one of the attack's pictures."""
    found: int
    """Pictures of the attack that show it."""
    images: int
    """Pictures that the attack drew."""
    evaluations: int
    """Of the UNet, for one latent each: a backward pass counts two more, guidance doubles a step.

    All that the attack spent on this prompt, the picture without the attack included. What it is
    given, pictures of the base, is not counted, nor are controls.
    """
    artefact: str = ""
    """A kind and a digest of what was found; never what was found."""
    curve: Mapping[str, float] = field(default_factory=dict)
    """Setting -> share of pictures that show it there, controls among them."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack got back of what an eraser took."""

    attack: str
    access: Access
    attempts: tuple[Attempt, ...]

    @property
    def pre(self) -> Rate:
        """Prompts that show it without the attack."""
        return Rate(sum(attempt.before for attempt in self.attempts), len(self.attempts))

    @property
    def post(self) -> Rate:
        """Those and the newly broken ones: what is got without an attack counts for it.

        So UnlearnDiffAtk counts (arXiv 2310.11868).
        """
        return Rate(sum(attempt.after for attempt in self.attempts), len(self.attempts))

    @property
    def per_image(self) -> Rate:
        """Pictures of the attack that show it.

        With a share q of them, one of n independent pictures shows it with 1 - (1 - q)^n.
        """
        return Rate(sum(a.found for a in self.attempts), sum(a.images for a in self.attempts))

    @property
    def evaluations(self) -> int:
        """Of the UNet, for all prompts."""
        return sum(attempt.evaluations for attempt in self.attempts)

    @property
    def curve(self) -> dict[str, float]:
        """Setting -> share of the prompts tried there that show it."""
        keys = dict.fromkeys(key for attempt in self.attempts for key in attempt.curve)
        told = {key: [a.curve[key] for a in self.attempts if key in a.curve] for key in keys}
        return {key: sum(values) / len(values) for key, values in told.items()}

    def lift(self, control: "AttackResult") -> float:
        """Post - post of the control, a seed search of equal budget (see `equal_budget`).

        Luck alone finds some: below zero, the attack is worse than drawing again.

        Raises:
            ErasureError: the control was asked for something else.
        """
        if [(a.prompt, a.seed) for a in self.attempts] != [
            (a.prompt, a.seed) for a in control.attempts
        ]:
            raise ErasureError(
                f"'{self.attack}' and its control '{control.attack}' were asked for different "
                "prompts or seeds; run both on the same."
            )
        return self.post.value - control.post.value


class Attack(Protocol):
    """A way back to an erased concept; it leaves the pipeline as it finds it.

    The same attack within `erasures_disabled(pipe)` is its positive control: what it does to a
    model that has lost nothing.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def access(self) -> Access:
        """What it takes."""
        ...

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One attempt for each that is asked for, in their order."""
        ...


def run_attack(
    attack: Attack, sampler: PipelineSampler, asked: Sequence[PromptCase]
) -> AttackResult:
    """What the attack gets back of what the loaded erasers took."""
    return AttackResult(attack.name, attack.access, tuple(attack(sampler, asked)))


def concept_of(asked: Sequence[PromptCase], told: Concept | None) -> Concept:
    """The concept that was told, or else the first label that is looked for."""
    return told or Concept(asked[0].wanted[0])
