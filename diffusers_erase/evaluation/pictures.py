"""Pictures from prompts and seeds, and sheets of them."""

from collections.abc import Sequence
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
    **options: Any,
) -> list[Image.Image]:
    """One picture per prompt, whatever batch it is drawn in.

    Args:
        pipe: a pipeline.
        prompts: one for each picture.
        guidance: scale of classifier-free guidance.
        steps: of the scheduler.
        seed: of each picture; or one number, and picture i has `seed + i`.
        batch: pictures drawn together.
        options: what else the pipeline is told.
    """
    seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + batch]]
        pictures += pipe(
            chunk,
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=generators,
            **options,
        ).images
    return pictures


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size, side by side."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * width, 0))
    return sheet


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Rows of pictures of one size, each below its title if it has one."""
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
