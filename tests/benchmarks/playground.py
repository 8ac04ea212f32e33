"""Quality of the judge, autoencoder and pipeline, as the tables of docs/playground.md.

python tests/benchmarks/playground.py --each 64 > tables.md
"""

import argparse
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.playground import (
    ARTISTS,
    COLOURS,
    OBJECTS,
    Judge,
    JudgeVerdict,
    Scene,
    Thing,
    load_judge,
    load_pipeline,
    prompt,
    render,
    sample_scene,
)
from diffusers_erase.playground.judge import to_tensor
from diffusers_erase.playground.world import COMPANIONS


FRESH = 10_000_000
"""Scenes from this seed on are in no corpus."""


def fresh_scenes(count: int) -> list[Scene]:
    return [sample_scene(random.Random(FRESH + i)) for i in range(count)]


def rate(verdicts: Sequence[JudgeVerdict], hit: Callable[[int, JudgeVerdict], bool]) -> Rate:
    return Rate(sum(hit(i, v) for i, v in enumerate(verdicts)), len(verdicts))


def judge_table(judge: Judge, count: int) -> list[tuple[str, Rate]]:
    scenes = fresh_scenes(count)
    verdicts = judge(np.stack([render(s, FRESH + i) for i, s in enumerate(scenes)]))
    seen = list(zip(scenes, verdicts, strict=True))
    single = [(s.things[0], v) for s, v in seen if len(s.things) == 1]
    double = [({t.object for t in s.things}, v) for s, v in seen if len(s.things) == 2]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 3, 64, 64, generator=generator).clamp(-1, 1)
    uniform = torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1
    blank = (torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1).expand(-1, -1, 64, 64)

    def share(hits: Iterable[bool]) -> Rate:
        counted = list(hits)
        return Rate(sum(counted), len(counted))

    return [
        ("object, one in the picture", share(v.label == thing.object for thing, v in single)),
        ("both objects, two in the picture", share(set(v.objects) == pair for pair, v in double)),
        ("style", share(v.style == s.style for s, v in seen)),
        ("colour, one in the picture", share(v.colour == thing.colour for thing, v in single)),
        ("background", share(v.background == s.background for s, v in seen)),
        ("rendered pictures accepted", share(v.valid for v in verdicts)),
        ("normal noise rejected", share(not v.valid for v in judge(noise))),
        ("uniform noise rejected", share(not v.valid for v in judge(uniform))),
        ("blank pictures rejected", share(not v.valid for v in judge(blank))),
    ]


@torch.no_grad()
def reconstruction(vae: torch.nn.Module, count: int) -> tuple[float, float]:
    """PSNR of the mean squared error, and the mean of each picture's own PSNR, in dB."""
    scenes = fresh_scenes(count)
    pictures = to_tensor(np.stack([render(s, FRESH + i) for i, s in enumerate(scenes)]))
    errors = []
    for chunk in pictures.to(vae.device).split(64):
        redrawn = vae.decode(vae.encode(chunk).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append((redrawn - chunk).pow(2).mean((1, 2, 3)))
    error = torch.cat(errors)
    return 10 * float((4 / error.mean()).log10()), 10 * float((4 / error).log10().mean())


def markdown(title: str, rows: Sequence[tuple[str, Rate]]) -> str:
    lines = [f"| {title} | rate | 95 % interval | n |", "| --- | ---: | ---: | ---: |"]
    for name, r in rows:
        low, high = r.interval
        lines.append(
            f"| {name} | {100 * r.value:.1f} % | {100 * low:.1f} .. {100 * high:.1f} | {r.n} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=64, help="pictures per object and style")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument(
        "--rendered", type=int, default=4096, help="pictures the judge is tested on"
    )
    parser.add_argument("--pipeline", type=Path, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16, help="pictures drawn at a time")
    parser.add_argument("--sheet", type=Path, default=None, help="write a sheet of samples here")
    options = parser.parse_args()
    judge, pipe = load_judge(), load_pipeline(options.pipeline).to(options.device)
    started = time.monotonic()

    def drawn(scenes: list[Scene], seed: int) -> tuple[list[Image.Image], list[JudgeVerdict]]:
        pictures = draw(
            pipe,
            [prompt(s) for s in scenes],
            guidance=options.guidance,
            steps=options.steps,
            seed=seed,
            batch=options.batch,
        )
        return pictures, judge(pictures)  # fmt: skip

    each = options.each
    print(
        f"DDIM {options.steps} steps, guidance {options.guidance}, n = {each} per row, seed 0.\n",
        flush=True,
    )
    print(markdown("judge on fresh renderings", judge_table(judge, options.rendered)), flush=True)
    whole, mean = reconstruction(pipe.vae, 1024)
    print(f"Autoencoder, 1024 fresh renderings: {whole:.2f} dB", end=" ")
    print(f"(mean of each picture's own: {mean:.2f} dB).\n", flush=True)

    plain = [Scene((Thing(o, COLOURS[i % 8]),)) for o in OBJECTS for i in range(each)]
    pictures, verdicts = drawn(plain, 0)
    seen = list(zip(plain, verdicts, strict=True))
    rows = []
    for name in OBJECTS:
        own = [v for s, v in seen if s.things[0].object == name]
        rows.append((name, rate(own, lambda i, v, name=name: name in v.objects)))
    total = rate(verdicts, lambda i, v: plain[i].things[0].object in v.objects)
    print(markdown("object, plain", [("**all objects**", total), *rows]), flush=True)
    colours = []
    for name in COLOURS:
        own = [v for s, v in seen if s.things[0].colour == name]
        colours.append((name, rate(own, lambda i, v, name=name: v.colour == name)))
    print(
        markdown(
            "colour, plain",
            [("**all colours**", sum((r for _, r in colours[1:]), colours[0][1])), *colours],
        ),
        flush=True,
    )

    painted = [
        Scene((Thing(OBJECTS[(7 * i + 3) % len(OBJECTS)], COLOURS[i % 8]),), s)
        for s in ARTISTS
        for i in range(each)
    ]
    styled, verdicts = drawn(painted, 1_000_000)
    rows, kept = [], []
    for style in ARTISTS:
        own = [(s, v) for s, v in zip(painted, verdicts, strict=True) if s.style == style]
        rows.append(
            (f"{style} ({ARTISTS[style]})", Rate(sum(v.style == style for _, v in own), len(own)))
        )
        kept.append((style, Rate(sum(s.things[0].object in v.objects for s, v in own), len(own))))
    print(
        markdown("style", [("**all styles**", sum((r for _, r in rows[1:]), rows[0][1])), *rows]),
        flush=True,
    )
    print(
        markdown(
            "object, in a style",
            [("**all styles**", sum((r for _, r in kept[1:]), kept[0][1])), *kept],
        ),
        flush=True,
    )

    rng = random.Random(0)
    pairs = [*COMPANIONS * 6, *(tuple(rng.sample(OBJECTS, 2)) for _ in range(60))]
    double = [Scene(tuple(Thing(o, rng.choice(COLOURS)) for o in pair)) for pair in pairs]
    two, verdicts = drawn(double, 2_000_000)
    both = [
        {t.object for t in s.things} <= set(v.objects)
        for s, v in zip(double, verdicts, strict=True)
    ]
    print(
        markdown(
            "two objects, both found",
            [
                ("companions", Rate(sum(both[:60]), 60)),
                ("random pairs", Rate(sum(both[60:]), 60)),
                ("**all**", Rate(sum(both), 120)),
            ],
        ),
        flush=True,
    )
    print(f"{time.monotonic() - started:.0f} s in all.")
    if options.sheet:
        rows = [
            pictures[::each][:21],
            pictures[::each][21:],
            *(styled[i * each : (i + 1) * each][:21] for i in range(len(ARTISTS))),
            two[:21],
            two[60:81],
        ]
        sheet = Image.new("RGB", (21 * 64, len(rows) * 64), "white")
        for y, row in enumerate(rows):
            for x, picture in enumerate(row):
                sheet.paste(picture, (64 * x, 64 * y))
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(options.sheet)


if __name__ == "__main__":
    main()
