"""Inner loops: players beside the eraser, such as a target that is learnt, or an adversary."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.models.trajectories import View


Views = Mapping[str, View]
"""Name -> view: the latents of one minibatch, `concept` and what else a recipe samples."""

Loss = Callable[[Views], Tensor]
"""Views -> scalar."""


class InnerLoop(Protocol):
    """Changes the views on which the eraser's loss is taken, and may learn from that loss.

    All chance depends on the seed and the step alone, so that a resumed run draws the same. A loop
    may have an attribute `ending`: None, or the first step of the run's last part and the step
    before which the run ends, once it has found that no more are needed.
    """

    def __call__(self, step: int, views: Views) -> Views:
        """The views of a minibatch as the loss takes them, with gradients for the eraser alone.

        Called once for every minibatch of a step.
        """
        ...

    def learn(self, views: Views, loss: Loss, mean: Callable[[Tensor], Tensor]) -> None:
        """Learn after the eraser's step; called once a step."""
        ...

    def choices(self) -> tuple[ErasedConcept, ...]:
        """The target of each concept at present; empty if this loop chooses no targets."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...


class PassiveLoop:
    """An inner loop that only changes views: it learns nothing, chooses nothing and has no state.

    Subclasses define `__call__`.
    """

    def learn(self, views: Views, loss: Loss, mean: Callable[[Tensor], Tensor]) -> None:
        """Nothing is learnt."""

    def choices(self) -> tuple[ErasedConcept, ...]:
        """Empty: it chooses no targets."""
        return ()

    def state(self) -> dict[str, Tensor]:
        """Empty: nothing changes."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""
