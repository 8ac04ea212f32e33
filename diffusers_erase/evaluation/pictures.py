"""Pictures of prompts and seeds, and sheets of pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw


def draw(
    pipe: Any,
    prompts: Sequence[str],
    *,
    guidance: float = 5.0,
    steps: int = 25,
    seed: int | Sequence[int] = 0,
    batch: int = 16,
    each: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Image.Image]:
    """One picture per prompt; it does not depend on the batch but for rounding.

    Args:
        pipe: a pipeline.
        prompts: one per picture.
        guidance: scale of classifier-free guidance.
        steps: of the scheduler.
        seed: one per picture; or one number, and picture i has the seed `seed + i`.
        batch: pictures drawn together.
        each: further arguments of the pipeline with one value per picture.
        options: further arguments of the pipeline.
    """
    seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        pictures += pipe(
            list(prompts[rows]),
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(s) for s in seeds[rows]],
            **options,
            **{name: values[rows] for name, values in (each or {}).items()},
        ).images
    return pictures


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """One picture of rows of equally large pictures, each row below its title if it has one."""
    width, height = rows[0][1][0].size
    columns = max(len(pictures) for _, pictures in rows)
    heads = [22 if title else 2 for title, _ in rows]
    whole = Image.new("RGB", (columns * (width + 2), sum(heads) + len(rows) * height), "white")
    canvas, top = ImageDraw.Draw(whole), 0
    for (title, pictures), head in zip(rows, heads, strict=True):
        canvas.text((2, top + head - 15), title, "black")
        for i, picture in enumerate(pictures):
            whole.paste(picture, (i * (width + 2), top + head))
        top += head + height
    return whole
