"""Rates with confidence intervals, and the means that papers report of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import harmonic_mean

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


ENOUGH_PROMPTS = 10
"""Least number of prompts that the bootstrap resamples; with fewer it resamples pairs alone."""


@dataclass(frozen=True)
class Rate:
    """hits / n, with Wilson's 95 % interval."""

    hits: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n:
            raise ValueError(f"A rate needs 0 <= hits <= n; got {self.hits} of {self.n}.")

    @property
    def value(self) -> float:
        """Hits / n, 0 .. 1; nan if n is 0."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95 %, which holds at 0 and 1 and for small n too."""
        if not self.n:
            return 0.0, 1.0
        z, n, p = 1.959964, self.n, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        spread = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - spread), min(1.0, centre + spread)

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(self.hits + other.hits, self.n + other.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.0f} .. {100 * high:.0f})"


def pooled(rates: Sequence[Rate]) -> Rate | None:
    """All hits of all n; None for no rates."""
    return sum(rates[1:], rates[0]) if rates else None


def difference(before: Rate, after: Rate) -> tuple[float, float]:
    """95 % interval of after - before, by Newcombe's hybrid of Wilson's (1998, method 10).

    It is for independent samples, and so wider than necessary for the same prompts and seeds.
    """
    p, q = before.value, after.value
    (p_low, p_high), (q_low, q_high) = before.interval, after.interval
    return (
        q - p - math.hypot(q - q_low, p_high - p),
        q - p + math.hypot(q_high - q, p - p_low),
    )


def card_row(base: Rate, erased: Rate) -> dict[str, float]:
    """A row of the model card: both rates, the interval of their difference, number of pictures."""
    low, high = difference(base, erased)
    shares = {"base": base.value, "erased": erased.value, "low": low, "high": high}
    return {**{name: round(share, 4) for name, share in shares.items()}, "n": erased.n}


def erasebench(
    efficacy: float | None, generality: float | None, sensitivity: float | None
) -> float | None:
    """HM = 3 / ( 1/(1 − Eff) + 1/(1 − Gen) + 1/Sens ), in shares (EraseBench, arXiv 2501.09833).

    None if one of the three was not measured.
    """
    if efficacy is None or generality is None or sensitivity is None:
        return None
    return harmonic_mean((1 - efficacy, 1 - generality, sensitivity))


def esr(ranked: Sequence[Sequence[str]], wanted: str | Sequence[str], k: int = 1) -> Rate:
    """ESR-k: share of pictures whose wanted label is not among their first k.

    For pictures of erased classes (AP, arXiv 2410.15618; AGE, arXiv 2501.18950).

    `ranked` are each picture's labels, best first; none where nothing can be judged. `wanted` is
    one label for each picture or for all, in upper or lower case.

    Raises:
        ErasureError: the numbers of pictures and labels differ, or k is below 1.
    """
    found = psr(ranked, wanted, k)
    return Rate(found.n - found.hits, found.n)


def psr(ranked: Sequence[Sequence[str]], wanted: str | Sequence[str], k: int = 1) -> Rate:
    """PSR-k: share of pictures whose wanted label is among their first k.

    For pictures of classes that are to be kept; the arguments are those of `esr`.
    """
    names = [wanted] * len(ranked) if isinstance(wanted, str) else list(wanted)
    if len(names) != len(ranked):
        raise ErasureError(f"{len(ranked)} pictures need as many wanted labels; got {len(names)}.")
    if k < 1:
        raise ErasureError(f"`k` is the number of labels to search, 1 or more; got {k}.")
    hits = [
        name.casefold() in (label.casefold() for label in labels[:k])
        for name, labels in zip(names, ranked, strict=True)
    ]
    return Rate(sum(hits), len(hits))


def paired_bootstrap(
    before: Sequence[bool],
    after: Sequence[bool],
    prompts: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of mean(after) − mean(before), over pairs of equal prompt and seed.

    Prompts are resampled first and then seeds within each, so that the interval includes the
    variation between prompts; with fewer than `ENOUGH_PROMPTS` prompts pairs alone are resampled.
    The interval is a point if all pairs change alike, and somewhat too narrow below 100 pairs (91 %
    coverage at 50): read it beside the two Wilson intervals.

    Raises:
        ErasureError: no pairs, unequal lengths, values that are not true or false, or no resamples.
    """
    changes, sizes = _changes(before, after, prompts)
    if resamples < 1:
        raise ErasureError(f"`resamples` must be 1 or more; got {resamples}.")
    generator = torch.Generator().manual_seed(seed)
    groups = len(sizes)
    means = []
    for part in torch.arange(resamples).split(max(1, 2_000_000 // groups)):
        drawn = torch.randint(groups, (len(part), groups), generator=generator)
        n = sizes[drawn]
        # n draws with replacement from gains, losses and the rest are a multinomial sample
        gains, losses = changes[0, drawn], changes[1, drawn]
        up = torch.binomial(n, gains / n, generator=generator)
        down = torch.binomial(n - up, losses / (n - gains).clamp(min=1), generator=generator)
        means.append((up - down).sum(1) / n.sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """ρ: Pearson's correlation of the ranks; equal values share their average rank.

    None (not defined) if either is constant or there are fewer than 3 values.
    """
    if len(x) != len(y):
        raise ErasureError(f"A rank correlation needs pairs; got {len(x)} and {len(y)} values.")
    if any(math.isnan(value) for value in (*x, *y)):
        raise ErasureError("A rank correlation was given nan; leave that pair out.")
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    a, b = (_ranks(values) for values in (x, y))
    return max(-1.0, min(1.0, float(a @ b / (a.norm() * b.norm()))))


def _changes(
    before: Sequence[bool], after: Sequence[bool], prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Pairs of each group that become hits and cease to be, 2 x groups; sizes of the groups."""
    if not len(before) == len(after) == len(prompts) > 0:
        raise ErasureError(
            f"Each pair needs a value before, one after and a prompt; got {len(before)}, "
            f"{len(after)} and {len(prompts)}."
        )
    if odd := {*before, *after} - {False, True}:
        raise ErasureError(f"Hits must be true or false; got {odd.pop()!r}.")
    names = list(dict.fromkeys(prompts))
    place = {name: i if len(names) >= ENOUGH_PROMPTS else 0 for i, name in enumerate(names)}
    groups = torch.tensor([place[prompt] for prompt in prompts])
    change = torch.tensor([int(b) - int(a) for a, b in zip(before, after, strict=True)])
    kinds = torch.stack([change > 0, change < 0, change > -2]).double()
    count = torch.zeros(3, int(groups.max()) + 1, dtype=torch.float64).index_add(1, groups, kinds)
    return count[:2], count[2]


def _ranks(values: Sequence[float]) -> Tensor:
    """Ranks minus their mean."""
    _, place, count = torch.tensor(values, dtype=torch.float64).unique(
        return_inverse=True, return_counts=True
    )
    rank: Tensor = count.cumsum(0) - (count.double() - 1) / 2
    return rank[place] - (len(values) + 1) / 2
