"""Table of architectures (where text enters a denoiser), and the fingerprint of a model."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from diffusers_erase.errors import ErasureError


PARTS = ("to_q", "to_k", "to_v", "to_out.0")
"""The four projections of a cross-attention."""

TEXT_PARTS = ("to_k", "to_v")
"""The projections that read the text."""

SELF_PARTS = tuple(f"attn1.{part}" for part in PARTS)
"""The same of the self-attention beside a cross-attention."""

COMPONENTS = ("unet", "transformer")
"""Names of the denoiser in pipelines."""

Factors = tuple[Tensor, Tensor]
"""A (rank x in) and B (out x rank) of one layer: its weight changes by B A."""


@dataclass(frozen=True)
class Family:
    """Names of a model family in LoRA files and on the Hub."""

    modelspec: str
    """ModelSpec's architecture of a LoRA for it."""
    tags: tuple[str, ...]
    """Tags by which the Hub groups LoRAs of such models."""


@dataclass(frozen=True)
class Architecture:
    """One class of denoisers; patterns match whole paths of layers."""

    text: str
    """The linear layers that read the text encoder's states as they come."""
    attention: str | None = None
    """Text cross-attentions with `PARTS`, if there are any; temporal ones are not among them."""
    component: Literal["unet", "transformer"] = "unet"
    """What pipelines call the denoiser."""
    trainable: bool = False
    """Whether erasers are trained here; closed forms are solved in every architecture."""
    tokenizers: tuple[tuple[str, str | None], ...] = (("tokenizer", None),)
    """Tokenizers whose states stand one after another, each with the pipeline's attribute that says
    how many states it has; None: the rest."""
    kohya: bool = False
    """Whether user interfaces read kohya's keys for it."""
    families: Mapping[int, Family] = field(default_factory=dict)
    """Width of the text -> names of the model family."""


_TEXT = f"(?:{'|'.join(TEXT_PARTS)})"
_BLOCK = r".*transformer_blocks\.\d+\.attn2"

_SD = ("stable-diffusion", "stable-diffusion-diffusers", "template:sd-lora")
_SDXL = ("stable-diffusion-xl", "stable-diffusion-xl-diffusers", "template:sd-lora")

_UNET_FAMILIES = {
    768: Family("stable-diffusion-v1/lora", _SD),
    1024: Family("stable-diffusion-v2-512/lora", _SD),
    2048: Family("stable-diffusion-xl-v1-base/lora", _SDXL),
}


def _unet(attention: str, *, trainable: bool = False) -> Architecture:
    text, families = rf"{attention}\.{_TEXT}", _UNET_FAMILIES
    return Architecture(text, attention, trainable=trainable, kohya=True, families=families)


ARCHITECTURES: dict[str, Architecture] = {
    "UNet2DConditionModel": _unet(_BLOCK, trainable=True),
    "UNetMotionModel": _unet(rf"(?!.*motion_modules|transformer_in){_BLOCK}"),
    "UNet3DConditionModel": _unet(rf"(?!.*temp_attentions|transformer_in){_BLOCK}"),
    "SD3Transformer2DModel": Architecture(
        "context_embedder",
        component="transformer",
        tokenizers=(("tokenizer", "tokenizer_max_length"), ("tokenizer_3", None)),  # CLIP's, T5's
    ),
    "FluxTransformer2DModel": Architecture(
        "context_embedder",
        component="transformer",
        tokenizers=(("tokenizer_2", None),),  # T5's
    ),
    "PixArtTransformer2DModel": Architecture(
        r"caption_projection\.linear_1", component="transformer"
    ),
}
"""By class. Transformers read the text once, through one projection, before all their blocks."""


def architecture(name: str) -> Architecture:
    """The table's row for a class of denoisers.

    Raises:
        ErasureError: there is none.
    """
    if name not in ARCHITECTURES:
        raise ErasureError(
            f"Cannot erase in '{name}': its text layers are not known. "
            f"Supported: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def architecture_or_default(name: str) -> Architecture:
    """The row of a class; that of Stable Diffusion's UNet where the class is not known."""
    return ARCHITECTURES.get(name, ARCHITECTURES["UNet2DConditionModel"])


def projections(unet: nn.Module, parts: tuple[str, ...] = PARTS) -> dict[str, nn.Linear]:
    """Path -> linear layer, for these `PARTS` and `SELF_PARTS` of every block, in module order.

    Empty for transformers, which have no text cross-attention.
    """
    attention = architecture(type(unet).__name__).attention
    if attention is None:
        return {}
    block, _, cross = attention.rpartition(r"\.")
    paths = (part if part in SELF_PARTS else f"{cross}.{part}" for part in parts)
    return _layers(unet, rf"{block}\.(?:{'|'.join(map(re.escape, paths))})")


def text_layers(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """Path -> linear layer that reads the text encoder's states, in module order.

    Raises:
        ErasureError: the denoiser reads the text in another way than others of its class.
    """
    name, unusual = type(denoiser).__name__, unusual_text_path(denoiser)
    if unusual:
        raise ErasureError(
            f"Cannot erase in this '{name}' with {unusual}: it reads the text in another way than "
            "others of its class, and part of the concept would be left."
        )
    found = _layers(denoiser, architecture(name).text)
    if not found:
        raise ErasureError(
            f"Cannot erase in this '{name}': it has none of the layers by which its class reads "
            "text states."
        )
    return found


def unusual_text_path(denoiser: nn.Module) -> str:
    """Options by which text states are projected before they are read, or read by self-attentions.

    Empty for a denoiser that reads them as the table says.
    """
    config: Any = getattr(denoiser, "config", {})
    projection = config.get("encoder_hid_dim_type")
    if getattr(denoiser, "text_encoder_hid_proj", None) is not None:  # beside an image prompt's
        projection = "text_proj"
    if projection not in (None, "ip_image_proj"):
        return f"encoder_hid_dim_type={projection!r}"
    everywhere = config.get("only_cross_attention", False)
    read = any(everywhere) if isinstance(everywhere, list | tuple) else everywhere
    return f"only_cross_attention={everywhere!r}" if read else ""


def text_weights(denoiser: nn.Module) -> dict[str, Tensor]:
    """Path -> weight (out x width) of every layer that reads the text."""
    return {path: layer.weight for path, layer in text_layers(denoiser).items()}


def reads_text(path: str) -> bool:
    """True if a layer with this path reads the text in any architecture."""
    return any(re.fullmatch(known.text, path) for known in ARCHITECTURES.values())


def _layers(denoiser: nn.Module, pattern: str) -> dict[str, nn.Linear]:
    whole = re.compile(pattern)
    return {path: linear(denoiser, path) for path in _paths(denoiser) if whole.fullmatch(path)}


def _paths(network: nn.Module) -> Iterator[str]:
    """The paths of `named_modules()`, without a generator for every level of each."""
    seen, waiting = set[nn.Module](), [("", network)]
    while waiting:
        path, module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield path
            prefix = f"{path}." if path else ""
            waiting += reversed([(prefix + name, each) for name, each in module.named_children()])


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
    """Class, text width and layer sizes that an eraser and its model have in common."""
    name = type(unet).__name__
    text = _layers(unet, architecture(name).text)
    layers = projections(unet) or text
    shapes = [(layer.out_features, layer.in_features) for layer in layers.values()]
    return {
        "denoiser": name,
        "text_width": next((layer.in_features for layer in text.values()), None),
        "cross_attention_layers": len(shapes),
        "cross_attention_parameters": sum(out * width for out, width in shapes),
    }
