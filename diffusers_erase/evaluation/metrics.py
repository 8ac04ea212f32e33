"""Rates with their uncertainty, and the pictures they are counted on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image


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


def draw(
    pipe: Any,
    prompts: Sequence[str],
    *,
    guidance: float = 5.0,
    steps: int = 25,
    seed: int = 0,
    batch: int = 16,
) -> list[Image.Image]:
    """One picture per prompt; picture i has seed `seed + i`, however they are batched."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        pictures += pipe(
            chunk, guidance_scale=guidance, num_inference_steps=steps, generator=generators
        ).images
    return pictures


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size, side by side."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * width, 0))
    return sheet
