"""Where text enters a denoiser: one table of architectures, and a fingerprint of a model."""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffusers_erase.errors import ErasureError


PARTS = ("to_q", "to_k", "to_v", "to_out.0")
"""The four projections of a cross-attention."""

TEXT_PARTS = ("to_k", "to_v")
"""Those that read the text."""

COMPONENTS = ("unet", "transformer")
"""What pipelines call their denoiser."""

Factors = tuple[Tensor, Tensor]
"""A (rank x in) and B (out x rank) of one layer: its weight changes by B A."""


@dataclass(frozen=True)
class Architecture:
    """Where text enters denoisers of one class; patterns match whole paths."""

    text: str
    """The linear layers that read the text encoder's states as they come."""
    attention: str | None = None
    """Text cross-attentions with `PARTS`, if there are any; temporal ones are not among them."""


def _cross_attention(pattern: str) -> Architecture:
    return Architecture(rf"{pattern}\.(?:{'|'.join(TEXT_PARTS)})", pattern)


_BLOCK = r".*transformer_blocks\.\d+\.attn2"

ARCHITECTURES: dict[str, Architecture] = {
    "UNet2DConditionModel": _cross_attention(_BLOCK),
    "UNetMotionModel": _cross_attention(rf"(?!.*motion_modules|transformer_in){_BLOCK}"),
    "UNet3DConditionModel": _cross_attention(rf"(?!.*temp_attentions|transformer_in){_BLOCK}"),
    "SD3Transformer2DModel": Architecture("context_embedder"),
    "FluxTransformer2DModel": Architecture("context_embedder"),
    "PixArtTransformer2DModel": Architecture(r"caption_projection\.linear_1"),
}
"""By class. Transformers read the text once, through one projection, before all their blocks."""


def architecture(name: str) -> Architecture:
    """The table's entry for a class of denoisers.

    Raises:
        ErasureError: there is none.
    """
    if name not in ARCHITECTURES:
        raise ErasureError(
            f"Cannot erase in '{name}': where it reads the text is not known. "
            f"Supported: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def component(name: str) -> str:
    """What pipelines call a denoiser of this class."""
    return "transformer" if name.endswith("Transformer2DModel") else "unet"


def denoiser_of(pipe: Any) -> nn.Module:
    """The UNet or transformer of a pipeline, or the model itself; a compiled wrapper is taken off.

    Raises:
        ErasureError: there is no denoiser of a supported class.
    """
    model = pipe if isinstance(pipe, nn.Module) else denoiser_or_none(pipe)
    model = getattr(model, "_orig_mod", model)
    architecture(type(pipe if model is None else model).__name__)
    assert isinstance(model, nn.Module)
    return model


def denoiser_or_none(pipe: Any) -> Any:
    """What a pipeline denoises with, whatever it is; None if that was not loaded."""
    parts = (getattr(pipe, name, None) for name in COMPONENTS)
    return next((part for part in parts if part is not None), None)


def projections(unet: nn.Module, parts: tuple[str, ...] = PARTS) -> dict[str, nn.Linear]:
    """Path -> linear layer, for these parts of every text cross-attention, in module order.

    Empty for transformers, which have none.
    """
    attention = architecture(type(unet).__name__).attention
    if attention is None:
        return {}
    return _layers(unet, rf"{attention}\.(?:{'|'.join(map(re.escape, parts))})")


def text_layers(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """Path -> linear layer that reads the text, in module order."""
    return _layers(denoiser, architecture(type(denoiser).__name__).text)


def text_weights(denoiser: nn.Module) -> dict[str, Tensor]:
    """Path -> weight (out x width) of every layer that reads the text."""
    return {path: layer.weight for path, layer in text_layers(denoiser).items()}


def reads_text(path: str) -> bool:
    """Whether a layer of this path reads the text, in some architecture."""
    return any(re.fullmatch(known.text, path) for known in ARCHITECTURES.values())


def _layers(denoiser: nn.Module, pattern: str) -> dict[str, nn.Linear]:
    whole = re.compile(pattern)
    paths = (path for path, _ in denoiser.named_modules() if whole.fullmatch(path))
    return {path: linear(denoiser, path) for path in paths}


def linear(unet: nn.Module, path: str) -> nn.Linear:
    """The linear layer at `path`, looking inside an adapter's wrapper.

    Raises:
        ErasureError: there is no such layer.
    """
    try:
        module = unet.get_submodule(path)
        layer = module if isinstance(module, nn.Linear) else module.get_submodule("base_layer")
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise ErasureError(f"'{type(unet).__name__}' has no linear layer '{path}'.")
    return layer


def fingerprint(unet: nn.Module) -> dict[str, Any]:
    """What an eraser shares with the model it fits: class, text width, sizes of its layers."""
    name, text = type(unet).__name__, text_layers(unet)
    layers = projections(unet) if architecture(name).attention else text
    shapes = [(layer.out_features, layer.in_features) for layer in layers.values()]
    return {
        "denoiser": name,
        "text_width": next((layer.in_features for layer in text.values()), None),
        "cross_attention_layers": len(shapes),
        "cross_attention_parameters": sum(out * width for out, width in shapes),
    }
