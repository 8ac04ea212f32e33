"""Continual erasure: erasers are loaded one after another and all concepts measured after each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import measurable
from diffusers_erase.evaluation.graph import ConceptSet, rates, require_no_erasers
from diffusers_erase.evaluation.metrics import Rate, pooled
from diffusers_erase.evaluation.runner import Runner
from diffusers_erase.runtime.plugin import load_erasure, unload_erasures


@dataclass(frozen=True)
class Timeline:
    """The rate of every concept after each erasure; unmeasurable concepts are left out of means.

    This is DUGE's protocol (unlearning accuracy UA = 1 - rate) on 21 objects in a row.
    """

    base: Mapping[str, Rate]
    after: Mapping[str, Mapping[str, Rate]]
    """Last erased concept -> measured concept -> rate; in the order of erasing."""

    def erased_by(self, step: str) -> list[str]:
        """The measurable concepts that are erased up to this step."""
        order = list(self.after)
        return [c for c in order[: order.index(step) + 1] if measurable(self.base[c])]

    def unlearned(self, step: str) -> Rate | None:
        """UA: pictures without the concept, over all concepts erased up to this step."""
        rates = [self.after[step][c] for c in self.erased_by(step)]
        return pooled([Rate(rate.n - rate.hits, rate.n) for rate in rates])

    def kept(self, step: str) -> Rate | None:
        """Pictures with the concept, over all measurable concepts that are never erased."""
        left = [c for c in self.base if c not in self.after and measurable(self.base[c])]
        return pooled([self.after[step][c] for c in left])

    def to_list(self) -> list[dict[str, Any]]:
        """One entry per step, for JSON."""
        return [
            {
                "erased": step,
                "unlearned": _to_dict(self.unlearned(step)),
                "kept": _to_dict(self.kept(step)),
            }
            for step in self.after
        ]


def continual(
    runner: Runner, concepts: ConceptSet, erasers: Mapping[str, EraserAdapter], *, seed: int = 0
) -> Timeline:
    """Load the erasers one after another and measure all concepts after each.

    Raises:
        ErasureError: the pipeline has erasers, or an eraser's concept is not among the concepts.
    """
    pipe = runner.sampler.pipe
    require_no_erasers(pipe)
    if foreign := [name for name in erasers if name not in concepts.names]:
        raise ErasureError(
            f"No family has the concept {foreign[0]!r}, which an eraser erases; add it to one."
        )
    cases = concepts.cases(seed)
    base, after = rates(runner, cases, "base"), {}
    try:
        for name, eraser in erasers.items():
            load_erasure(pipe, eraser, name=name)
            after[name] = rates(replace(runner, title=f"after {name}"), cases, "erased")
    finally:
        unload_erasures(pipe)
    return Timeline(base, after)


def _to_dict(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else {"value": round(rate.value, 4), "interval": rate.interval}
