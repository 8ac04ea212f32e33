"""Rates with their uncertainty, and the means that papers make of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.errors import ErasureError


ENOUGH_PROMPTS = 10
"""With fewer, the prompts are too few to be drawn from: the bootstrap draws from the pairs."""


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
        """The share, 0 .. 1; nan of nothing."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95 %: honest also at 0 and 1 and for small n."""
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


def difference(before: Rate, after: Rate) -> tuple[float, float]:
    """95 % interval of after - before, by Newcombe's hybrid of Wilson's (1998, method 10).

    For independent samples: where the same prompts and seeds are drawn twice it is wider than it
    need be.
    """
    p, q = before.value, after.value
    (p_low, p_high), (q_low, q_high) = before.interval, after.interval
    return (
        q - p - math.hypot(q - q_low, p_high - p),
        q - p + math.hypot(q_high - q, p - p_low),
    )


def compared(base: Rate, erased: Rate) -> dict[str, float]:
    """A row of the model card: both rates, the interval of their difference, how many pictures."""
    low, high = difference(base, erased)
    shares = {"base": base.value, "erased": erased.value, "low": low, "high": high}
    return {**{name: round(share, 4) for name, share in shares.items()}, "n": erased.n}


def harmonic(*shares: float | None) -> float | None:
    """N / Σ 1/s over N shares: a mean of shares in which none can make up for another.

    Zero where one of them is zero; None, which is "not measured", where one of them is.

    Raises:
        ErasureError: there is no share, or one that is no number from 0 to 1.
    """
    if not shares:
        raise ErasureError("A harmonic mean was asked of no shares; name one at least.")
    known = [share for share in shares if share is not None]
    for share in known:
        if not 0 <= share <= 1:
            raise ErasureError(
                f"A share of {share} was to enter a mean; it must lie from 0 to 1 (percentages "
                "divided by 100), and what was not measured is None."
            )
    if len(known) < len(shares):
        return None
    return len(known) / sum(1 / share for share in known) if all(known) else 0.0


def erasebench(
    efficacy: float | None, generality: float | None, sensitivity: float | None
) -> float | None:
    """HM = 3 / ( 1/(1 − Eff) + 1/(1 − Gen) + 1/Sens ), in shares (EraseBench, arXiv 2501.09833).

    Args:
        efficacy: share of pictures in which the concept is seen where it is asked for; low is good.
        generality: the same where it is asked for by paraphrases; low is good.
        sensitivity: share in which related concepts are seen that were to stay; high is good.
    """
    return harmonic(_rest(efficacy), _rest(generality), sensitivity)


def esr(ranked: Sequence[Sequence[str]], wanted: str | Sequence[str], k: int = 1) -> Rate:
    """ESR-k: share of pictures whose wanted label is not among their first k.

    For pictures of erased classes (AP, arXiv 2410.15618; AGE, arXiv 2501.18950).

    Args:
        ranked: each picture's labels, the best first; none where nothing could be judged.
        wanted: what each picture was to show, or all of them; equality without regard to case.
        k: 1 or 5 in the papers.

    Raises:
        ErasureError: there is not one wanted label per picture, or k is below 1.
    """
    found = psr(ranked, wanted, k)
    return Rate(found.n - found.hits, found.n)


def psr(ranked: Sequence[Sequence[str]], wanted: str | Sequence[str], k: int = 1) -> Rate:
    """PSR-k: share of pictures whose wanted label is among their first k.

    For pictures of classes that were to stay; the arguments are those of `esr`.
    """
    names = [wanted] * len(ranked) if isinstance(wanted, str) else list(wanted)
    if len(names) != len(ranked):
        raise ErasureError(
            f"{len(ranked)} pictures were judged and {len(names)} labels wanted; name one of each."
        )
    if k < 1:
        raise ErasureError(f"The first {k} labels were asked for; ask for 1 or more.")
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

    Prompts are drawn first and then seeds within each, so that what prompts differ in is not taken
    for certainty; pairs alone where there are fewer than `ENOUGH_PROMPTS` prompts. It is a point
    where all pairs differ alike, and somewhat too narrow below 100 pairs (91 % at 50): read it
    beside the two Wilson intervals.

    Args:
        before: hit or not, pair by pair.
        after: the same pairs.
        prompts: each pair's prompt.
        resamples: more make the ends smoother.
        seed: of the draws; equal seeds give equal intervals.

    Raises:
        ErasureError: no pairs, unequal lengths, verdicts that are not true or false, no resamples.
    """
    drops, sizes = _changes(before, after, prompts)
    if resamples < 1:
        raise ErasureError(f"{resamples} resamples were asked for; ask for 1 or more.")
    generator = torch.Generator().manual_seed(seed)
    groups = len(sizes)
    means = []
    for part in torch.arange(resamples).split(max(1, 2_000_000 // groups)):
        drawn = torch.randint(groups, (len(part), groups), generator=generator)
        n = sizes[drawn]
        # n draws with replacement from gains, losses and the rest are a multinomial sample
        gains, losses = drops[0, drawn], drops[1, drawn]
        up = torch.binomial(n, gains / n, generator=generator)
        down = torch.binomial(n - up, losses / (n - gains).clamp(min=1), generator=generator)
        means.append((up - down).sum(1) / n.sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """ρ: Pearson's correlation of the ranks; equals share their average rank.

    None, "not defined", where either is constant or there are fewer than 3 values.

    Raises:
        ErasureError: unequal lengths, or a value that is no number.
    """
    if len(x) != len(y):
        raise ErasureError(f"{len(x)} values were to be ranked against {len(y)}; give pairs.")
    if any(math.isnan(value) for value in (*x, *y)):
        raise ErasureError("A value to be ranked is no number; leave its pair out.")
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    a, b = (_ranks(values) for values in (x, y))
    return max(-1.0, min(1.0, float(a @ b / (a.norm() * b.norm()))))


def _rest(share: float | None) -> float | None:
    return None if share is None else 1 - share


def _changes(
    before: Sequence[bool], after: Sequence[bool], prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """How many pairs of each group gain and lose, 2 x groups, and how large the groups are."""
    if not len(before) == len(after) == len(prompts) > 0:
        raise ErasureError(
            f"Pairs need one verdict before, one after and one prompt each; got {len(before)}, "
            f"{len(after)} and {len(prompts)}."
        )
    if odd := {*before, *after} - {False, True}:
        raise ErasureError(f"Verdicts must be true or false; got {odd.pop()!r}.")
    names = list(dict.fromkeys(prompts))
    place = {name: i if len(names) >= ENOUGH_PROMPTS else 0 for i, name in enumerate(names)}
    groups = torch.tensor([place[prompt] for prompt in prompts])
    change = torch.tensor([int(b) - int(a) for a, b in zip(before, after, strict=True)])
    kinds = torch.stack([change > 0, change < 0, change > -2]).double()
    count = torch.zeros(3, int(groups.max()) + 1, dtype=torch.float64).index_add(1, groups, kinds)
    return count[:2], count[2]


def _ranks(values: Sequence[float]) -> Tensor:
    """Ranks about their mean."""
    _, place, count = torch.tensor(values, dtype=torch.float64).unique(
        return_inverse=True, return_counts=True
    )
    rank: Tensor = count.cumsum(0) - (count.double() - 1) / 2
    return rank[place] - (len(values) + 1) / 2
