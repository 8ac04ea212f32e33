"""Rates and verdict of an evaluation, counted from the judgements whenever they are shown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import measurable
from diffusers_erase.evaluation.metrics import Rate, erasebench, paired_bootstrap, pooled
from diffusers_erase.evaluation.runner import Judgement
from diffusers_erase.evaluation.suites import RELATIONS


GONE_BELOW, KEPT_ABOVE = 0.15, 0.85
"""An eraser passes if, with 95 % confidence, the rate of the concept is below the first, and the
rate of related concepts is above this share of the base model's rate."""

MEASURES = ("efficacy", "generality", "sensitivity")
"""EraseBench's three measures (arXiv 2501.09833)."""

CARD_NAMES = {
    "target": "target",
    "paraphrase": "synonyms",
    "neighbour": "neighbours",
    "other": "others",
    "null": "null",
}
"""Relation -> row of the model card."""


@dataclass(frozen=True)
class GroupResult:
    """The rates of a group of prompts without and with the eraser: one row of the table."""

    name: str
    relation: str
    base: Rate
    erased: Rate
    interval: tuple[float, float]
    """95 % interval of the difference of the rates, over pairs of the same prompt and seed."""
    invalid: Rate
    """Pictures with the eraser in which nothing can be judged; they count as no hits."""

    @classmethod
    def of(
        cls, name: str, relation: str, base: Sequence[Judgement], erased: Sequence[Judgement]
    ) -> "GroupResult":
        """Count judgements of the same prompts and seeds, in the same order."""
        before, after = [judgement.hit for judgement in base], [each.hit for each in erased]
        return cls(
            name,
            relation,
            _rate(before),
            _rate(after),
            paired_bootstrap(before, after, [judgement.prompt for judgement in base]),
            _rate([not judgement.valid for judgement in erased]),
        )

    @property
    def difference(self) -> float:
        """Rate with the eraser - rate without it."""
        return self.erased.value - self.base.value

    @property
    def measurable(self) -> bool:
        """True if the base model shows the wanted labels often enough to measure a difference."""
        return RELATIONS[self.relation].expected == "either" or measurable(self.base)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for the model card."""
        low, high = self.interval
        shares = {"base": self.base.value, "erased": self.erased.value, "low": low, "high": high}
        return {
            **{name: round(share, 4) for name, share in shares.items()},
            "n": self.erased.n,
            "invalid": round(self.invalid.value, 4),
            "relation": self.relation,
            "measurable": self.measurable,
        }


@dataclass(frozen=True)
class Summary:
    """All counts about one eraser, or about erasers that are loaded together."""

    rows: tuple[GroupResult, ...]
    drift: Mapping[str, float] | None = None
    """See `evaluation.drift`; None if it was not measured."""

    @classmethod
    def of(
        cls,
        judgements: Iterable[Judgement],
        relations: Mapping[str, str],
        drift: Mapping[str, float] | None = None,
    ) -> "Summary":
        """Count the judgements of both sides."""
        groups: dict[str, dict[str, list[Judgement]]] = {group: {} for group in relations}
        for judgement in judgements:
            sides = groups.setdefault(judgement.group, {})
            sides.setdefault(judgement.side, []).append(judgement)
        rows = []
        for group, sides in groups.items():
            base, erased = (sorted(sides.get(s, ()), key=_case) for s in ("base", "erased"))
            if not base or [*map(_case, base)] != [*map(_case, erased)]:
                raise ErasureError(
                    f"The group '{group}' has {len(base)} pictures of the base and {len(erased)} "
                    "with the eraser, or of other prompts; finish the run, then count."
                )
            rows.append(GroupResult.of(group, relations.get(group, "other"), base, erased))
        return cls(tuple(rows), drift)

    def rate(self, measure: str, which: Literal["base", "erased"] = "erased") -> Rate | None:
        """EraseBench's efficacy, generality or sensitivity: pictures with a hit.

        Over all measurable groups that count as it; None if there are none.
        """
        groups = (r for r in self.rows if RELATIONS[r.relation].counts_as == measure)
        return pooled([getattr(group, which) for group in groups if group.measurable])

    @property
    def harmonic(self) -> float | None:
        """EraseBench's harmonic mean, 0 .. 1; None if one of the three was not measured."""
        rates = [self.rate(measure) for measure in MEASURES]
        return erasebench(*(None if rate is None else rate.value for rate in rates))

    @property
    def verdict(self) -> str:
        """`pass` or `fail` by `GONE_BELOW` and `KEPT_ABOVE` with 95 % confidence.

        Otherwise `undecided`, which more pictures would change, or `not measured`.
        """
        target, near = self.rate("efficacy"), self.rate("sensitivity")
        before = self.rate("sensitivity", "base")
        if target is None or near is None or before is None:
            return "not measured"
        least = KEPT_ABOVE * before.value
        if target.interval[1] < GONE_BELOW and near.interval[0] > least:
            return "pass"
        failed = target.interval[0] > GONE_BELOW or near.interval[1] < least
        return "fail" if failed else "undecided"

    @property
    def failures(self) -> list[GroupResult]:
        """Groups that are not as expected, with 95 % confidence."""
        wrong = []
        for row in self.rows:
            expected = RELATIONS[row.relation].expected if row.measurable else "either"
            still = expected == "gone" and row.erased.interval[0] > GONE_BELOW
            harmed = expected == "kept" and row.interval[1] < 0
            wrong += [row] if still or harmed else []
        return wrong

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": {row.name: row.to_dict() for row in self.rows},
            **{measure: rate_to_dict(self.rate(measure)) for measure in MEASURES},
            "harmonic": None if self.harmonic is None else round(self.harmonic, 4),
            "drift": None if self.drift is None else dict(self.drift),
            "verdict": self.verdict,
            "thresholds": {"gone_below": GONE_BELOW, "kept_above": KEPT_ABOVE},
        }

    def card(self) -> dict[str, Any]:
        """The `results` of `save_pretrained` and `push_to_hub`."""
        columns = ("base", "erased", "low", "high", "n")
        results: dict[str, Any] = {}
        for row in self.rows:
            name = CARD_NAMES.get(row.relation)
            if name is not None and name not in results:
                content = row.to_dict()
                results[name] = {column: content[column] for column in columns}
        if self.harmonic is not None:
            results["harmonic_mean"] = round(self.harmonic, 4)
        return {**results, **{f"drift_{k}": round(v, 6) for k, v in (self.drift or {}).items()}}


def rate_to_dict(rate: Rate | None) -> dict[str, Any] | None:
    """Value, interval and number of pictures, for JSON; None if it was not measured."""
    if rate is None:
        return None
    return {"value": round(rate.value, 4), "interval": rate.interval, "n": rate.n}


def _rate(hits: Sequence[bool]) -> Rate:
    return Rate(sum(hits), len(hits))


def _case(judgement: Judgement) -> tuple[str, int]:
    return judgement.prompt, judgement.seed
