"""Effects of other calls of diffusers on an eraser: calls x modes, exact or broken.

python tests/benchmarks/sticky.py

Each call is made on a fresh pipeline with an eraser on it and a style LoRA beside it, and the
picture is held against that of a model whose weights were added up by hand. `adapter` is the same
eraser through plain `load_lora_weights`.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.hooks import apply_group_offloading

from diffusers_erase import erase
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.models.architectures import TEXT_PARTS, projections
from diffusers_erase.models.model import Model
from diffusers_erase.playground import load_pipeline


MODES = ("bake", "hook", "adapter")
TOLERANCE = 1e-3
"""Largest difference of a pixel, 0 .. 1; broken ones differ by a tenth and more."""


def picture(pipe: Any, **options: Any) -> Any:
    return pipe(
        "a photo of a red car",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **options,
    ).images


def style_of(unet: Any) -> EraserAdapter:
    """Somebody's LoRA on keys and values."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    layers = projections(unet, TEXT_PARTS)
    factors = {p: (normal(4, x.in_features), normal(x.out_features, 4)) for p, x in layers.items()}
    return EraserAdapter((Lora(factors),), EraserConfig((ErasedConcept("style"),), rank=4))


def dense(*changes: tuple[EraserAdapter, float], **options: Any) -> Any:
    """The picture of weights that were added up by hand."""
    pipe = load_pipeline()
    layers = projections(pipe.unet)
    for eraser, strength in changes:
        for path in eraser.factors:
            layers[path].weight.data += strength * eraser.delta(path)
    return picture(pipe, **options)


def load_style(pipe: Any, folder: Path) -> None:
    pipe.load_lora_weights(folder, adapter_name="S")


def fused(pipe: Any, folder: Path) -> None:
    load_style(pipe, folder)
    pipe.fuse_lora(adapter_names=["S"])


def then(*calls: Callable[[Any], Any]) -> Callable[[Any, Path], Any]:
    """Load the style, then these."""

    def change(pipe: Any, folder: Path) -> Any:
        load_style(pipe, folder)
        found = None
        for call in calls:
            found = call(pipe)
        return found

    return change


def copied(pipe: Any, _: Path) -> None:
    pipe.unet = copy.deepcopy(pipe.unet)


def saved(pipe: Any, folder: Path) -> Any:
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        pipe.save_pretrained(place)
        opened = StableDiffusionPipeline.from_pretrained(place)
        opened.set_progress_bar_config(disable=True)
        return opened


def with_style_first(pipe: Any, folder: Path) -> None:
    """The other order: the eraser comes off, the style goes on, and the eraser comes after it."""
    loaded = pipe.list_erasures()
    if loaded:
        adapter = pipe.unet._erasures.loaded["car"].adapter
        pipe.unload_erasures()
        load_style(pipe, folder)
        pipe.load_erasure(adapter, mode=loaded["car"].mode)
    else:
        pipe.unload_lora_weights()
        load_style(pipe, folder)
        pipe.load_lora_weights(folder.parent / "eraser", adapter_name="eraser")


def compiled_around(pipe: Any, _: Path) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def in_groups(pipe: Any, _: Path) -> None:
    cpu = torch.device("cpu")
    apply_group_offloading(
        pipe.unet, onload_device=cpu, offload_device=cpu, offload_type="leaf_level"
    )


def layer_by_layer(pipe: Any, _: Path) -> None:
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))


def a_learnt_word(pipe: Any, _: Path) -> None:
    pipe.text_encoder, pipe.tokenizer = copy.deepcopy((pipe.text_encoder, pipe.tokenizer))
    width = pipe.text_encoder.config.hidden_size
    pipe.load_textual_inversion({"<thing>": torch.ones(width)}, token="<thing>")


CALLS: dict[str, tuple[Callable[[Any, Path], Any], float, Mapping[str, Any]]] = {
    "nothing": (lambda pipe, _: None, 0, {}),
    "load_lora_weights(style)": (load_style, 1, {}),
    "load_lora_weights(style), then the eraser": (with_style_first, 1, {}),
    'set_adapters("style", 0.5)': (then(lambda pipe: pipe.set_adapters("S", 0.5)), 0.5, {}),
    'cross_attention_kwargs={"scale": 0.5}': (
        load_style, 0.5, {"cross_attention_kwargs": {"scale": 0.5}},
    ),
    "disable_lora()": (then(lambda pipe: pipe.disable_lora()), 0, {}),
    "fuse_lora()": (fused, 1, {}),
    "unload_lora_weights()": (then(lambda pipe: pipe.unload_lora_weights()), 0, {}),
    "fuse_lora(), unload_lora_weights()": (
        then(lambda pipe: pipe.fuse_lora(adapter_names=["S"]), lambda p: p.unload_lora_weights()),
        1, {},
    ),
    'delete_adapters("style")': (then(lambda pipe: pipe.delete_adapters("S")), 0, {}),
    "from_pipe()": (lambda pipe, _: StableDiffusionImg2ImgPipeline.from_pipe(pipe), 0, {}),
    "copy.deepcopy(unet)": (copied, 0, {}),
    "to(bfloat16), to(float32)": (
        lambda pipe, _: pipe.to(torch.bfloat16) and pipe.to(torch.float32) and None, 0, {},
    ),
    "unet.compile()": (lambda pipe, _: pipe.unet.compile(backend="eager"), 0, {}),
    "unet = torch.compile(unet)": (compiled_around, 0, {}),
    "enable_group_offload()": (in_groups, 0, {}),
    "enable_sequential_cpu_offload()": (layer_by_layer, 0, {}),
    "load_textual_inversion()": (a_learnt_word, 0, {}),
    "fuse_qkv_projections()": (lambda pipe, _: pipe.fuse_qkv_projections(), 0, {}),
    "save_pretrained(), from_pretrained()": (saved, 0, {}),
}  # fmt: skip
"""Call -> what it does (it may return another pipeline), the style's strength then, options."""


def put_on(pipe: Any, eraser: EraserAdapter, mode: str, folder: Path) -> None:
    if mode == "adapter":
        pipe.load_lora_weights(folder, adapter_name="eraser")
    else:
        pipe.load_erasure(eraser, mode=mode)


def verdict(name: str, mode: str, eraser: EraserAdapter, folder: Path) -> str:
    change, strength, options = CALLS[name]
    pipe = load_pipeline()
    put_on(pipe, eraser, mode, folder / "eraser")
    try:
        other = change(pipe, folder / "style")
        if isinstance(other, StableDiffusionImg2ImgPipeline):  # it shares the unet
            pipe.unet = other.unet
        drawn = picture(other if isinstance(other, StableDiffusionPipeline) else pipe, **options)
    except Exception as error:
        return f"{type(error).__name__}"
    expected = dense((eraser, 1.0), (style_of(Model.of(pipe).denoiser), strength))
    tolerance = 0.05 if "bfloat16" in name else TOLERANCE
    apart = float(np.abs(drawn - expected).max())
    return "exact" if apart < tolerance else f"broken ({apart:.2f})"


def main() -> None:
    pipe = load_pipeline()
    eraser = erase(
        pipe, "car", vocabulary=["truck", "oak", "cat"], recipe="closed-form", check=False
    )
    eraser = EraserAdapter((Lora(eraser.factors),), eraser.config)
    print(f"| call | {' | '.join(MODES)} |")
    print("| --- |" + " --- |" * len(MODES))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        eraser.save_pretrained(folder / "eraser")
        style_of(pipe.unet).save_pretrained(folder / "style")
        for name in CALLS:
            found = [verdict(name, mode, eraser, folder) for mode in MODES]
            print(f"| `{name}` | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
