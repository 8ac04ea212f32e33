"""Erasers added one after another: what is gone, and what is left, after each (DUGE's protocol)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import measurable
from diffusers_erase.evaluation.graph import ConceptSet, check_nothing_erased, rates
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.runtime.plugin import load_erasure, unload_erasures


@dataclass(frozen=True)
class Timeline:
    """How often every concept is drawn after each erasure; what the base does not draw is left out.

    DUGE measures so (unlearning accuracy, UA = 1 - rate), on 21 objects in a row.
    """

    base: Mapping[str, Rate]
    after: Mapping[str, Mapping[str, Rate]]
    """Concept erased last -> concept looked at -> rate; in the order of erasing."""

    def erased_by(self, step: str) -> list[str]:
        """What is erased after this step, and was drawn before."""
        order = list(self.after)
        return [c for c in order[: order.index(step) + 1] if measurable(self.base[c])]

    def unlearned(self, step: str) -> Rate | None:
        """UA: pictures without the concept, of all that are erased by then."""
        rates = [self.after[step][c] for c in self.erased_by(step)]
        gone = [Rate(rate.n - rate.hits, rate.n) for rate in rates]
        return sum(gone[1:], gone[0]) if gone else None

    def kept(self, step: str) -> Rate | None:
        """Pictures with the concept, of all that are never erased in this timeline."""
        left = [c for c in self.base if c not in self.after and measurable(self.base[c])]
        rates = [self.after[step][c] for c in left]
        return sum(rates[1:], rates[0]) if rates else None

    def plain(self) -> list[dict[str, Any]]:
        """For JSON: a line for each step."""
        found: list[dict[str, Any]] = []
        for step in self.after:
            told = {"unlearned": self.unlearned(step), "kept": self.kept(step)}
            shares = {
                k: None if r is None else {"value": round(r.value, 4), "interval": r.interval}
                for k, r in told.items()
            }
            found.append({"erased": step, **shares})
        return found


def continual(
    runner: Runner, field: ConceptSet, erasers: Mapping[str, EraserAdapter], *, seed: int = 0
) -> Timeline:
    """Load the erasers one after another, and look at all concepts after each.

    Args:
        runner: with a pipeline that nothing is erased from.
        field: what is looked at.
        erasers: concept -> its eraser, in the order of erasing.
        seed: of the pictures.

    Raises:
        ErasureError: the pipeline has erasers, or a concept is not in the field.
    """
    pipe = runner.sampler.pipe
    check_nothing_erased(pipe)
    foreign = [name for name in erasers if name not in field.concepts]
    if foreign:
        raise ErasureError(f"The field has no concept {foreign[0]!r}; add it to a family.")
    asked = field.asked(seed)
    base, after = rates(runner, asked, "base"), {}
    try:
        for name, eraser in erasers.items():
            load_erasure(pipe, eraser, name=name)
            after[name] = rates(replace(runner, title=f"after {name}"), asked, "erased")
    finally:
        unload_erasures(pipe)
    return Timeline(base, after)
