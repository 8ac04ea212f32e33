"""Erasers in closed form at the sizes of Stable Diffusion 1.5 and XL: seconds, beside UCE's loop.

python tests/benchmarks/closed_form.py

Random weights and states of the real shapes; nothing is downloaded, and the text encoder's time is
left out: states are looked up. The loop is UCE's as released (arXiv 2308.14761): outer products per
prompt and one inverse per layer, in float32.
"""

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.editing.edit import edit
from diffusers_erase.editing.recipes import CLOSED_FORM, UCE, Edit
from diffusers_erase.editing.solving import solve
from diffusers_erase.editing.texts import Texts
from diffusers_erase.playground import OBJECTS
from diffusers_erase.playground.building import networks
from diffusers_erase.storage.tensor_cache import TensorCache


SD15 = (768, {320: 5, 640: 5, 1280: 6})
SDXL = (2048, {640: 10, 1280: 60})
"""Width of the text, and how many cross-attentions have so many channels."""

TOKENS = 77


def weights_of(width: int, layers: dict[int, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{channels}.{k}.{part}": torch.randn(channels, width, generator=generator) / width**0.5
        for channels, count in layers.items()
        for k in range(count)
        for part in ("to_k", "to_v")
    }


class LookedUp:
    """States of prompts, cosine .6 with one another as CLIP's, and the time spent on them."""

    def __init__(self, width: int, tokenizer: Any) -> None:
        self.width, self.seconds = width, 0.0
        self.shared = torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(1))
        self.texts = Texts(self, tokenizer)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        started = time.perf_counter()
        own = [
            torch.randn(
                TOKENS, self.width, generator=torch.Generator().manual_seed(zlib.crc32(p.encode()))
            )
            for p in prompts
        ]
        found = 0.6**0.5 * self.shared + 0.4**0.5 * torch.stack(own)
        self.seconds += time.perf_counter() - started
        return found


def timed(run: Callable[[], Any], encoder: LookedUp) -> float:
    """Seconds without the encoder's, the better of two."""
    best = float("inf")
    for _ in range(2):
        encoder.seconds, started = 0.0, time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started - encoder.seconds)
    return best


def released(
    weights: dict[str, Tensor], E: Tensor, V: Tensor, R: Tensor, ridge: float
) -> dict[str, Tensor]:
    """UCE's loop: for every layer two sums of outer products, prompt by prompt, and an inverse."""
    edited = {}
    for path, W in weights.items():
        one = ridge * W
        two = ridge * torch.eye(W.shape[1])
        for c, v in [*zip(E, V, strict=True), *zip(R, R, strict=True)]:
            one = one + (W @ v)[:, None] @ c[None]
            two = two + c[:, None] @ c[None]
        edited[path] = one @ torch.inverse(two)
    return edited


def beside_the_loop(
    width: int, layers: dict[int, int], erased: int, retained: int, timed_layers: int
) -> str:
    weights = weights_of(width, layers)
    generator = torch.Generator().manual_seed(2)
    E, V, R = (torch.randn(n, width, generator=generator) for n in (erased, erased, retained))
    some = {path: weights[path] for path in [*weights][:: max(1, len(weights) // timed_layers)]}
    started = time.perf_counter()
    theirs = released(some, E, V, R, 0.5)
    loop = (time.perf_counter() - started) * len(weights) / len(some)
    started = time.perf_counter()
    K = R.double().T @ R.double() + 0.5 * torch.eye(width, dtype=torch.float64)
    T = solve(E, V, K)
    factors = T.factors(weights)
    ours = time.perf_counter() - started
    apart = max(
        float((W + factors[path][1] @ factors[path][0] - theirs[path]).norm() / theirs[path].norm())
        for path, W in some.items()
    )
    of_all = f" (by {len(some)} of {len(weights)} layers)" if len(some) < len(weights) else ""
    return (
        f"{erased} erased, {retained} retained: loop {loop:.2f} s{of_all}, ours {ours:.2f} s "
        f"({loop / ours:.0f} x), weights apart by {apart:.0e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["SD 1.5", "SDXL"])
    parser.add_argument(
        "--loop-layers",
        type=int,
        default=1000,
        help="of the loop, and the rest by proportion; 0 for no loop",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = networks.write_tokenizer(Path(scratch))
    tokenizer.model_max_length = TOKENS
    print(f"{torch.get_num_threads()} threads")
    for name, (width, layers) in {"SD 1.5": SD15, "SDXL": SDXL}.items():
        if name not in options.models:
            continue
        weights, encoder = weights_of(width, layers), LookedUp(width, tokenizer)
        one = [Concept(OBJECTS[0])]
        hundred = [Concept(f"{word} {k}") for k in range(3) for word in OBJECTS][:100]
        far = [OBJECTS[(k + 7) % len(OBJECTS)] for k in range(100)]

        def made(
            concepts: Sequence[Concept],
            recipe: Edit,
            targets: Sequence[str] | None,
            lora: bool,
            weights: dict[str, Tensor] = weights,
            texts: Texts = encoder.texts,
            cache: TensorCache | None = None,
        ) -> None:
            words = Vocabulary(tuple(f"{a} {b}" for a in OBJECTS[:10] for b in OBJECTS[-10:]))
            known = {"cache": cache, "encoder": "random"}
            found = edit(texts, concepts, recipe, targets=targets, vocabulary=words, **known)
            if lora:
                found.map.factors(weights)

        wide = replace(UCE, prompts=1, rank=1)
        for what, run in (
            ("one, target chosen, portable", partial(made, one, CLOSED_FORM, None, False)),
            (
                "one, target given, portable",
                partial(made, one, CLOSED_FORM, ["tent"], False),
            ),
            ("one, target given, LoRA", partial(made, one, CLOSED_FORM, ["tent"], True)),
            ("100 at once, portable", partial(made, hundred, wide, far, False)),
            ("100 at once, LoRA", partial(made, hundred, wide, far, True)),
        ):
            print(f"{name}: {what}: {timed(run, encoder):.2f} s", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            cache = TensorCache(Path(scratch))
            made([Concept(OBJECTS[1])], CLOSED_FORM, ["tent"], False, cache=cache)
            encoder.seconds, started = 0.0, time.perf_counter()
            made(one, CLOSED_FORM, ["tent"], True, cache=cache)
            again = time.perf_counter() - started - encoder.seconds
        what = "one, target given, LoRA, statistics of the words known from another concept"
        print(f"{name}: {what}: {again:.2f} s", flush=True)
        for erased, retained in ((1, 100), (100, 1000)) if options.loop_layers else ():
            found = beside_the_loop(width, layers, erased, retained, options.loop_layers)
            print(f"{name}: {found}", flush=True)


if __name__ == "__main__":
    main()
