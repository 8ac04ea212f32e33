"""Statistics of a text encoder as a file: what rounding them moves, and how large and quick it is.

python tests/benchmarks/priors.py

On the playground, erasers from statistics that are stored in several ways, against those from
unrounded ones; as they are, and where prompts are ended early and words shortlisted (see
`padding.py`). Then size and seconds of a file of random numbers for CLIP-L's shapes and words.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import encoding
import torch
from padding import cut
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.editing import own_prompts
from diffusers_erase.editing.own_prompts import OwnStatistics, own_pairs, own_words, settings
from diffusers_erase.linalg.gram import packed, unpacked
from diffusers_erase.making.api import erase
from diffusers_erase.making.priors import TextPrior
from diffusers_erase.models.encoder_fingerprint import EncoderFingerprint
from diffusers_erase.models.model import Model
from diffusers_erase.playground import load_pipeline


CONCEPTS = (
    *("clock", "star", "truck", "plane", "palm", "tulip", "church", "dog", "red", "van gyre"),
    Concept("red car", "compound"),
)


def triangle(G: Tensor) -> Tensor:
    return G[torch.ones_like(G, dtype=torch.bool).tril()]


def by_factor(G: Tensor) -> Tensor:
    """Through the triangular factor L of G = L L^T in float16."""
    values, vectors = torch.linalg.eigh(G)
    L = torch.linalg.qr((vectors * values.clamp(min=0).sqrt()).T).R.T.half().double()
    return triangle(L @ L.T)


WAYS: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype]] = {
    "triangle float32, endings float16 (the file)": (packed, torch.float16),
    "triangle float32, endings float32": (packed, torch.float32),
    "factor float16, endings float16": (by_factor, torch.float16),
    "triangle float16, endings float16": (lambda G: triangle(G).half().double(), torch.float16),
    "triangle float32, endings bfloat16": (packed, torch.bfloat16),
}


def moved() -> None:
    """The table of ways: how far the maps move, and how many targets are the same."""
    pipe = load_pipeline()
    print("| stored | map moves, mean (most) | targets | map moves, early | targets, early |")
    print("| --- | ---: | ---: | ---: | ---: |")
    exact = {}
    for way, (store, dtype) in {"exact": (triangle, torch.float64), **WAYS}.items():
        row = [way]
        for early in (False, True):
            with (
                cut() if early else nullcontext(),
                patch.object(own_prompts, "packed", store),
                patch.object(torch.Tensor, "half", lambda x, dtype=dtype: x.to(dtype)),
            ):
                made = [
                    erase(pipe, c, recipe="closed-form", check=False, progress=False)
                    for c in CONCEPTS
                ]
            found = [(m.text_map.change, m.config.concepts[0].target) for m in made]
            pairs = list(zip(found, exact.setdefault(early, found), strict=True))
            apart = [float((a - b).norm() / b.norm()) for (a, t), (b, s) in pairs if t == s]
            row.append(f"{sum(apart) / len(apart):.1e} ({max(apart):.1e})")
            row.append(f"{len(apart)} of {len(pairs)}")
        print(f"| {' | '.join(row)} |", flush=True)


def cost() -> None:
    """Size and seconds of a file for CLIP-L's shapes."""
    with tempfile.TemporaryDirectory() as scratch:
        pipe = encoding.pipeline("sd15", encoding.tokenizer(Path(scratch)))
        model, words = Model.of(pipe), own_words(pipe.tokenizer)
        width, count = model.empty_states.shape[-1], len(own_pairs(words))
        grams = torch.rand(len(own_prompts.GENERAL), width * (width + 1) // 2)
        statistics = OwnStatistics(words, grams, torch.rand(count, 2, width).half())
        start = time.perf_counter()
        own = EncoderFingerprint.of(model)
        print(f"fingerprint {time.perf_counter() - start:.3f} s")
        file = TextPrior(statistics, own, settings(), "", {}).save(scratch)
        print(f"{file.stat().st_size:,} bytes, {count:,} prompts, width {width}")
        for _ in range(3):
            start = time.perf_counter()
            found = TextPrior.from_pretrained(model, file)
            print(f"read, checked and fitted in {time.perf_counter() - start:.3f} s")
        start = time.perf_counter()
        unpacked(found.statistics.grams.sum(0))
        print(f"unpacked in {time.perf_counter() - start:.3f} s")


if __name__ == "__main__":
    moved()
    cost()
