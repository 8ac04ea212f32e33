"""Where text enters a denoiser: its cross-attention projections, and a fingerprint of them."""

import re
from typing import Any

from torch import Tensor, nn

from diffusers_erase.errors import ErasureError


PARTS = ("to_q", "to_k", "to_v", "to_out.0")
"""The four projections of a cross-attention."""

TEXT_PARTS = ("to_k", "to_v")
"""Those that read the text."""

Factors = tuple[Tensor, Tensor]
"""A (rank x in) and B (out x rank) of one layer: its weight changes by B A."""

CROSS_ATTENTION: dict[str, str] = {
    "UNet2DConditionModel": r".*transformer_blocks\.\d+\.attn2",
    "UNetMotionModel": r"(?!.*motion_modules|transformer_in).*transformer_blocks\.\d+\.attn2",
    "UNet3DConditionModel": r"(?!.*temp_attentions|transformer_in).*transformer_blocks\.\d+\.attn2",
}
"""Denoiser class -> full-match pattern of its text cross-attentions, temporal ones excluded."""


def denoiser_of(pipe: Any) -> nn.Module:
    """The UNet of a pipeline, or the UNet itself; a compiled wrapper is taken off.

    Raises:
        ErasureError: there is no denoiser of a supported class.
    """
    unet = pipe if isinstance(pipe, nn.Module) else getattr(pipe, "unet", None)
    unet = getattr(unet, "_orig_mod", unet)
    if type(unet).__name__ not in CROSS_ATTENTION or unet is None:
        found = type(pipe).__name__ if unet is None else type(unet).__name__
        raise ErasureError(
            f"Cannot erase in '{found}': no cross-attention known there. "
            f"Supported: {', '.join(CROSS_ATTENTION)}."
        )
    return unet


def projections(unet: nn.Module, parts: tuple[str, ...] = PARTS) -> dict[str, nn.Linear]:
    """Path -> linear layer, for the given parts of every text cross-attention, in module order."""
    attention = CROSS_ATTENTION[type(unet).__name__]
    pattern = re.compile(rf"{attention}\.({'|'.join(map(re.escape, parts))})")
    return {path: linear(unet, path) for path, _ in unet.named_modules() if pattern.fullmatch(path)}


def text_weights(unet: nn.Module) -> dict[str, Tensor]:
    """Path -> weight (out x width) of every layer that reads the text."""
    return {path: layer.weight for path, layer in projections(unet, TEXT_PARTS).items()}


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
    """What an eraser shares with the model it fits: class, text width, cross-attention sizes."""
    shapes = [(layer.out_features, layer.in_features) for layer in projections(unet).values()]
    return {
        "denoiser": type(unet).__name__,
        "text_width": unet.config.cross_attention_dim,  # type: ignore[union-attr]
        "cross_attention_layers": len(shapes),
        "cross_attention_parameters": sum(out * width for out, width in shapes),
    }
