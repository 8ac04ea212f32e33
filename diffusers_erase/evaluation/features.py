"""Embeddings of pictures and texts by CLIP or SigLIP."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusers_erase.errors import ErasureError


@torch.no_grad()
def picture_features(
    model: Any, processor: Any, pictures: Sequence[Image.Image], *, batch: int = 32
) -> Tensor:
    """Picture embeddings of unit length, n x channels, float64 on the CPU.

    Args:
        model: CLIP or SigLIP, with `get_image_features`.
        processor: the model's image processor.
        pictures: one or more.
        batch: pictures per forward pass; more take more memory.
    """
    features = []
    for start in range(0, len(pictures), batch):
        chunk = [picture.convert("RGB") for picture in pictures[start : start + batch]]
        pixels = processor(images=chunk, return_tensors="pt").to(model.device, model.dtype)
        features.append(_pooled(model.get_image_features(**pixels)))
    if not features:
        raise ErasureError("No pictures to embed; give at least one.")
    return _unit(torch.cat(features))


@torch.no_grad()
def text_features(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Text embeddings of unit length, n x channels, float64 on the CPU.

    Texts are padded to the model's length, as in the training of SigLIP; CLIP ignores what follows
    the end token.

    Args:
        model: CLIP or SigLIP, with `get_text_features`.
        tokenizer: the model's tokenizer.
        texts: one or more, none longer than the model reads.
    """
    if not texts:
        raise ErasureError("No texts to embed; give at least one.")
    length = model.config.text_config.max_position_embeddings
    ids = tokenizer(list(texts), padding="max_length", max_length=length).input_ids
    for text, tokens in zip(texts, ids, strict=True):
        if len(tokens) > length:
            raise ErasureError(
                f"The text '{text[:60]}...' has {len(tokens)} tokens and the model reads {length}; "
                "shorten it."
            )
    return _unit(_pooled(model.get_text_features(input_ids=torch.tensor(ids, device=model.device))))


def _unit(x: Tensor) -> Tensor:
    """x/|x|, row by row."""
    length: Tensor = x.norm(dim=1, keepdim=True)
    if not length.all():
        raise ErasureError("The embedding of a picture or text is zero and has no direction.")
    return x / length


def _pooled(output: Any) -> Tensor:
    """The embeddings: in an output object since transformers 5, as a tensor before."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    pooled: Tensor = features.detach().double().cpu()
    return pooled
