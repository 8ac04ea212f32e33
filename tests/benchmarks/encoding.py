"""A closed form from a cold start at real size: prompts encoded, seconds by stage, peak memory.

python tests/benchmarks/encoding.py --model sd15 --concepts 1 --work

Random weights of the real shapes and a tokenizer with CLIP's number of words; nothing is
downloaded. Of the denoiser there are only the layers that read the text. A full prompt is one of 77
positions: shorter ones count by their positions. `--work` makes a second eraser, of another
concept, with the statistics that the first has left in a folder. `--layers 1` leaves most of the
text encoders out: what is encoded is counted all the same, in a fraction of the time. `--way uce`,
`rece` or `speed` are the library's rows of these papers, with `--keep` words and given targets;
`--way "uce, per layer"` is UCE's released loop (arXiv 2308.14761) in matrix products: one prompt of
each concept, target and kept word, and an inverse for every layer, float32. `--floor` counts the
arithmetic of matrix products, and prints how many times the processor time of these alone, at the
rate of a large float32 product in the same process, the call took.
"""

import argparse
import json
import random
import resource
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import real_size
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from diffusers_erase.editing import edit, own_prompts
from diffusers_erase.making import api, by_algebra
from diffusers_erase.models.architectures import text_layers
from diffusers_erase.models.text_states import encode
from diffusers_erase.playground import OBJECTS
from diffusers_erase.playground.building import networks


VOCABULARY, TOKENS = 49408, 77

WAYS = ("closed-form", "uce", "rece", "speed", "uce, per layer")

STAGES = {
    "general prompts": (own_prompts.OwnStatistics, "of"),
    "of these, kept": (own_prompts.OwnStatistics, "without"),
    "shortlist": (edit, "shortlisted"),
    "general names": (edit, "general_names"),
    "proposals": (edit, "_proposals"),
    "distances": (edit, "distances"),
    "what is kept": (edit, "kept_beside"),
    "target": (edit, "choose"),
    "states": (edit, "states_and_targets"),
    "solution": (edit, "solved_within"),
    "LoRA": (by_algebra, "eraser_from_map"),
    "probe": (api, "probe"),
}
"""Name of a stage -> module and function."""


def tokenizer(folder: Path) -> CLIPTokenizer:
    """The playground's words, and invented ones until there are as many tokens as CLIP's."""
    draw, found = random.Random(0), [*networks.words()]
    consonants, vowels = "bcdfghklmnprstvwz", "aeiou"
    while len(found) < 36000:
        syllables = draw.choice((1, 2, 2, 3, 3))
        word = "".join(draw.choice(consonants) + draw.choice(vowels) for _ in range(syllables))
        found.append(word + draw.choice(consonants))
    tokens, merges = networks._byte_pairs(dict.fromkeys(found))
    kept = VOCABULARY - 2
    tokens, merges = tokens[:kept], merges[: kept - 512]
    ids = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def big_text_encoder(words: CLIPTokenizer, layers: int = 32) -> CLIPTextModelWithProjection:
    """OpenCLIP ViT-bigG/14's text model, with fewer layers if asked for."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=layers,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return CLIPTextModelWithProjection(config)


def reading_only(**config: Any) -> UNet2DConditionModel:
    """A UNet without weights, but for the layers that read the text."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    for layer in text_layers(unet).values():
        width = layer.in_features
        weight = torch.empty(layer.out_features, width).normal_(std=width**-0.5)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return unet


def pipeline(model: str, words: CLIPTokenizer, layers: int | None = None) -> Any:
    """A pipeline with random weights; `layers` of each text encoder, all by default."""
    torch.manual_seed(0)
    some = {} if layers is None else {"layers": layers}
    small = real_size.text_encoder(words, **some).eval()
    if model == "sd15":
        unet = reading_only(sample_size=64, cross_attention_dim=768)
        return networks.assemble(vae=networks.vae(), text_encoder=small, tokenizer=words, unet=unet)
    big = big_text_encoder(words, **some).eval()
    unet = reading_only(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return StableDiffusionXLPipeline(
        vae=networks.vae(),
        text_encoder=small,
        text_encoder_2=big,
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=networks.scheduler(),
        add_watermarker=False,
    )


class Encoded:
    """Counts calls, prompts, positions and seconds of a text encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        self.reset()
        encoder.register_forward_pre_hook(self._before, with_kwargs=True)
        encoder.register_forward_hook(self._after)

    def reset(self) -> None:
        self.calls = self.prompts = self.positions = 0
        self.seconds = self.work = 0.0

    def _before(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = given[0] if given else named["input_ids"]
        self.calls, self.prompts = self.calls + 1, self.prompts + len(ids)
        self.positions += ids.numel()
        self.started = time.perf_counter(), time.process_time()

    def _after(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.started[0]
        self.work += time.process_time() - self.started[1]


@contextmanager
def timed(
    encoded: Callable[[], tuple[float, float]], found: dict[str, list[float]]
) -> Iterator[None]:
    """While this lasts each stage adds its full prompts, and processor seconds besides encoding.

    `encoded` returns the prompts and the seconds until now.
    """
    originals = {}

    def around(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start, (prompts, encoding) = time.process_time(), encoded()
            result = call(*args, **options)
            now = encoded()
            found[name][0] += now[0] - prompts
            found[name][1] += time.process_time() - start - (now[1] - encoding)
            return result

        return run

    for stage, (module, name) in STAGES.items():
        originals[stage] = getattr(module, name)
        setattr(module, name, around(stage, originals[stage]))
    try:
        yield
    finally:
        for stage, (module, name) in STAGES.items():
            setattr(module, name, originals[stage])


@torch.no_grad()
def per_layer(pipe: Any, concepts: list[str], targets: list[str], keep: list[str]) -> None:
    """UCE's weights of every layer: W (Σ v c^T + Σ k k^T + λ I) (Σ c c^T + Σ k k^T + λ I)^-1."""
    last = [len(pipe.tokenizer(text).input_ids) - 2 for text in (*concepts, *targets, *keep)]
    states = torch.cat([encode(pipe, [text]) for text in (*concepts, *targets, *keep)])
    rows = torch.stack([each[k] for each, k in zip(states, last, strict=True)])
    c, v, k = rows.split([len(concepts), len(targets), len(keep)])
    edited = {}
    for path, layer in text_layers(pipe.unet).items():
        values, own = torch.cat((v, k)) @ layer.weight.T, torch.cat((c, k))
        two = own.T @ own + 0.5 * torch.eye(own.shape[1])
        edited[path] = (values.T @ own + 0.5 * layer.weight) @ torch.inverse(two)


def product_rate(size: int = 2048, repeats: int = 5) -> float:
    """Operations per second of processors in a float32 product of two square matrices."""
    a, b, best = torch.randn(size, size), torch.randn(size, size), float("inf")
    for _ in range(repeats):
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best


def measured(
    pipe: Any,
    concepts: list[str],
    work: Path | None,
    way: str = "closed-form",
    keep: int = 100,
    *,
    floor: bool = False,
) -> None:
    """Make one eraser, and print what it cost."""
    encoders = [e for e in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if e]
    counted = [Encoded(encoder) for encoder in encoders]
    stages: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def encoded() -> tuple[float, float]:
        return counted[0].positions / TOKENS, sum(each.work for each in counted)

    operations = FlopCounterMode(display=False) if floor else nullcontext()
    start, work_before = time.perf_counter(), time.process_time()
    with timed(encoded, stages), operations:
        chosen = made(pipe, concepts, work, way, keep)
    whole, spent = time.perf_counter() - start, time.process_time() - work_before
    encoding, (full, in_encoder), first = sum(e.seconds for e in counted), encoded(), counted[0]
    names = ", ".join(f"{name} as {target}" for name, target in chosen[:3])
    print(f"{len(concepts)} concepts ({names} ...)" if len(concepts) > 3 else names)
    print(
        f"  {full:,.0f} full prompts ({first.prompts:,} prompts in {first.calls:,} calls); "
        f"{whole - encoding:.2f} s besides encoding ({spent - in_encoder:.2f} s of processors), "
        f"{encoding:.1f} s of encoding"
    )
    parts = (f"{name} {a:,.0f} ({b:.2f} s)" for name, (a, b) in stages.items())
    print("  full prompts by stage (processor seconds besides encoding):", ", ".join(parts))
    if floor:
        count, rate = operations.get_total_flops(), product_rate()
        print(
            f"  {count / 1e12:.3f} TFLOP of products, {count / rate:.2f} s at {rate / 1e9:.0f} "
            f"GFLOP/s; the call took {spent * rate / count:.1f} times that"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  {peak:.2f} GiB at most, since the start", flush=True)


def made(
    pipe: Any, concepts: list[str], work: Path | None, way: str, keep: int
) -> list[tuple[str, str | None]]:
    """Make one eraser; its concepts and targets."""
    how: dict[str, Any] = {"recipe": way, "check": False, "progress": False, "work": work}
    if way != "closed-form":
        ends = (word.removesuffix("</w>") for word in pipe.tokenizer.get_vocab() if "</w>" in word)
        invented = sorted({word for word in ends if len(word) > 5} - set(networks.words()))
        targets = invented[: len(concepts)]
        kept = [f"{a} {b}" for a in OBJECTS for b in OBJECTS[::-1]][-keep:]
        if way == "uce, per layer":
            per_layer(pipe, concepts, targets, kept)
            return list(zip(concepts, targets, strict=True))
        how |= {"target": tuple(targets), "vocabulary": kept}
    eraser = api.erase(pipe, concepts, **how)
    return [(c.name, c.target) for c in eraser.config.concepts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--concepts", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, default=WAYS[0])
    parser.add_argument("--keep", type=int, default=100, help="words; none by the closed form")
    parser.add_argument("--work", action="store_true", help="once more with the statistics found")
    parser.add_argument("--layers", type=int, help="of each text encoder; all by default")
    parser.add_argument("--floor", action="store_true", help="beside the arithmetic of products")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        words = tokenizer(Path(scratch))
    pipe = pipeline(options.model, words, options.layers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.model}: {torch.get_num_threads()} threads, {peak:.2f} GiB before")
    listed = [*OBJECTS, *(f"{a} {b}" for a in OBJECTS for b in OBJECTS if a != b)]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) if options.work else None
        how = {"way": options.way, "keep": options.keep, "floor": options.floor}
        measured(pipe, listed[: options.concepts], work, **how)
        if options.work:
            measured(pipe, listed[-options.concepts :], work, **how)


if __name__ == "__main__":
    main()
