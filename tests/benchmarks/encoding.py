"""A closed form from a cold start at real size: prompts encoded, seconds by stage, peak memory.

python tests/benchmarks/encoding.py --model sd15 --concepts 1 --work

Random weights of the real shapes and a tokenizer with CLIP's number of words; nothing is
downloaded. Of the denoiser there are only the layers that read the text. A full prompt is one of 77
positions: shorter ones count by their positions. `--work` makes a second eraser, of another
concept, with the statistics that the first has left in a folder. `--layers 1` leaves most of the
text encoders out: what is encoded is counted all the same, in a fraction of the time.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import real_size
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from diffusers_erase.editing import edit
from diffusers_erase.making import api, by_algebra
from diffusers_erase.models.architectures import text_layers
from diffusers_erase.playground import OBJECTS
from diffusers_erase.playground.building import networks


VOCABULARY, TOKENS = 49408, 77

STAGES = {
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


def big_text_encoder(words: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """OpenCLIP ViT-bigG/14's text model."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
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


def shortened(encoder: Any, layers: int | None) -> Any:
    """The text encoder with its first layers only."""
    inner = getattr(encoder, "text_model", encoder).encoder
    inner.layers = inner.layers[:layers]
    return encoder.eval()


def pipeline(model: str, words: CLIPTokenizer, layers: int | None = None) -> Any:
    """A pipeline with random weights; `layers` of each text encoder, all by default."""
    torch.manual_seed(0)
    small = shortened(real_size.text_encoder(words), layers)
    if model == "sd15":
        unet = reading_only(sample_size=64, cross_attention_dim=768)
        return networks.assemble(vae=networks.vae(), text_encoder=small, tokenizer=words, unet=unet)
    big = shortened(big_text_encoder(words), layers)
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
        self.seconds = 0.0

    def _before(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = given[0] if given else named["input_ids"]
        self.calls, self.prompts = self.calls + 1, self.prompts + len(ids)
        self.positions += ids.numel()
        self.started = time.perf_counter()

    def _after(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.started


@contextmanager
def timed(seconds: Callable[[], float], found: dict[str, list[float]]) -> Iterator[None]:
    """While this lasts each stage adds its seconds, whole and of the text encoders."""
    originals = {}

    def around(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start, encoding = time.perf_counter(), seconds()
            result = call(*args, **options)
            found[name][0] += time.perf_counter() - start
            found[name][1] += seconds() - encoding
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


def measured(pipe: Any, concepts: list[str], work: Path | None) -> None:
    """Make one eraser, and print what it cost."""
    encoders = [e for e in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if e]
    counted = [Encoded(encoder) for encoder in encoders]
    stages: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    start = time.perf_counter()
    with timed(lambda: sum(each.seconds for each in counted), stages):
        eraser = api.erase(
            pipe, concepts, recipe="closed-form", check=False, progress=False, work=work
        )
    whole = time.perf_counter() - start
    encoding, first = sum(each.seconds for each in counted), counted[0]
    names = ", ".join(f"{c.name} as {c.target}" for c in eraser.config.concepts[:3])
    print(f"{len(concepts)} concepts ({names} ...)" if len(concepts) > 3 else names)
    print(
        f"  {whole:.1f} s, of which encoding {encoding:.1f} s; {first.prompts:,} prompts in "
        f"{first.calls:,} calls, as {first.positions / TOKENS:,.0f} of {TOKENS} positions"
    )
    parts = (f"{name} {a:.2f} ({b:.2f})" for name, (a, b) in stages.items())
    print("  seconds by stage (of which encoding):", ", ".join(parts))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  {peak:.1f} GiB at most, since the start", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--concepts", type=int, default=1)
    parser.add_argument("--work", action="store_true", help="once more with the statistics found")
    parser.add_argument("--layers", type=int, help="of each text encoder; all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        words = tokenizer(Path(scratch))
    pipe = pipeline(options.model, words, options.layers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.model}: {torch.get_num_threads()} threads, {peak:.1f} GiB before")
    listed = [*OBJECTS, *(f"{a} {b}" for a in OBJECTS[:10] for b in OBJECTS[20:30])]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) if options.work else None
        measured(pipe, listed[: options.concepts], work)
        if options.work:
            measured(pipe, listed[-options.concepts :], work)


if __name__ == "__main__":
    main()
