"""Copies of attention projections that `fuse_qkv_projections()` makes, and that erasers miss."""

from typing import Any

from torch import Tensor, nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import linear


COPIES = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""Fused layer of an attention -> the projections whose rows it holds, in this order."""


def fused_weights(denoiser: nn.Module) -> dict[str, Tensor]:
    """Path of a projection -> weight (out x in) of the fused copy that is used in its place."""
    found: dict[str, Tensor] = {}
    for path, attention in denoiser.named_modules():
        for copy, parts in COPIES.items() if _uses_copies(attention) else ():
            if hasattr(attention, copy):
                paths = [f"{path}.{part}" for part in parts]
                sizes = [linear(denoiser, each).out_features for each in paths]
                rows = getattr(attention, copy).weight.detach().split(sizes)
                found |= dict(zip(paths, rows, strict=True))
    return found


def require_unfused_projections(denoiser: nn.Module) -> None:
    """Raise if fused copies of the projections are in use: no change to an eraser reaches them."""
    if fused_weights(denoiser):
        raise ErasureError(
            "The pipeline's attention projections are fused; call "
            "`pipe.unfuse_qkv_projections()`, change the erasures, and fuse again."
        )


def _uses_copies(attention: Any) -> bool:
    """Whether an attention is fused now.

    Diffusers' older attentions leave `fused_projections` True after unfusing; their processor says.
    """
    processor = type(getattr(attention, "processor", None)).__name__
    newer = hasattr(attention, "unfuse_projections")
    return getattr(attention, "fused_projections", False) is True and (
        newer or processor.startswith("Fused")
    )
