"""The attack protocol, and its result: prompt by prompt, and as rates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase


Access = Literal["sampler", "white box", "fine-tune"]
"""Access of an attacker: prompts, seeds and sampler; gradients too; training too."""


NO_ERASER = ", no eraser"
"""End of the name of a setting whose picture is a control, drawn by the base."""


@dataclass
class Attempt:
    """One prompt under attack; a running attack updates it."""

    prompt: str
    wanted: tuple[str, ...]
    seed: int
    before: bool = False
    """The erased model shows a wanted label without the attack."""
    after: bool = False
    """It is shown before, or in one of the attack's pictures."""
    found: int = 0
    """Pictures of the attack that show it."""
    images: int = 0
    """Pictures that the attack drew."""
    evaluations: int = 0
    """Denoiser evaluations that the attack spent on this prompt, of one latent each.

    A backward pass counts two more, guidance doubles a step, and the picture without the attack is
    included. Pictures of the base that the attack is given are not counted, nor are controls.
    """
    artefact: str = ""
    """Kind and digest of what the attack found; never the finding itself."""
    curve: dict[str, float] = field(default_factory=dict)
    """Setting -> share of pictures that show it with that setting; controls are settings too."""


@dataclass(frozen=True)
class AttackResult:
    """The rates at which an attack brings an erased concept back."""

    attack: str
    access: Access
    attempts: tuple[Attempt, ...]

    @property
    def pre(self) -> Rate:
        """Prompts that show the concept without the attack."""
        return Rate(sum(attempt.before for attempt in self.attempts), len(self.attempts))

    @property
    def post(self) -> Rate:
        """Prompts that show the concept without the attack or with it.

        UnlearnDiffAtk counts the same way (arXiv 2310.11868).
        """
        return Rate(sum(attempt.after for attempt in self.attempts), len(self.attempts))

    @property
    def per_image(self) -> Rate:
        """Pictures of the attack that show the concept.

        If a share q of them does, one of n independent pictures does with 1 - (1 - q)^n.
        """
        return Rate(sum(a.found for a in self.attempts), sum(a.images for a in self.attempts))

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations for all prompts."""
        return sum(attempt.evaluations for attempt in self.attempts)

    @property
    def curve(self) -> dict[str, float]:
        """Setting -> share of the prompts tried with it that show the concept."""
        settings = dict.fromkeys(key for attempt in self.attempts for key in attempt.curve)
        shares = {key: [a.curve[key] for a in self.attempts if key in a.curve] for key in settings}
        return {key: sum(values) / len(values) for key, values in shares.items()}

    def reached(self, share: float = 0.5) -> str | None:
        """The curve's first setting with which this share of the prompts shows the concept.

        Of relearning it is the number of updates that brings it back. Controls are left out.
        """
        own = {key: value for key, value in self.curve.items() if not key.endswith(NO_ERASER)}
        return next((key for key, value in own.items() if value >= share), None)

    def lift(self, control: "AttackResult") -> float:
        """Post - post of the control, a seed search of equal budget (see `equal_budget`).

        Drawing again with other seeds finds the concept sometimes. Below zero the attack is worse
        than that.
        """
        if [(a.prompt, a.seed) for a in self.attempts] != [
            (a.prompt, a.seed) for a in control.attempts
        ]:
            raise ErasureError(
                f"'{self.attack}' and its control '{control.attack}' were run on different prompts "
                "or seeds; run both on the same."
            )
        return self.post.value - control.post.value


class Attack(Protocol):
    """A way to bring an erased concept back. It leaves the pipeline unchanged.

    The same attack within `erasures_disabled(pipe)` is its positive control: its result on a model
    that has lost nothing.
    """

    @property
    def name(self) -> str:
        """The name in the registry and in reports."""
        ...

    @property
    def access(self) -> Access:
        """The access that the attack needs."""
        ...

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One attempt per case, in the same order."""
        ...


def run_attack(
    attack: Attack, sampler: PipelineSampler, cases: Sequence[PromptCase]
) -> AttackResult:
    """Run the attack on the pipeline with the erasers that are loaded."""
    return AttackResult(attack.name, attack.access, tuple(attack(sampler, cases)))


def concept_of(cases: Sequence[PromptCase], concept: Concept | None) -> Concept:
    """The given concept, or else one named by the first wanted label."""
    return concept or Concept(cases[0].wanted[0])
