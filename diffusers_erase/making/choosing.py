"""The recipe for somebody who names none, and why it is that one."""

from typing import Any

from diffusers_erase.concepts import Vocabulary
from diffusers_erase.editing.recipes import CLOSED_FORM, Edit
from diffusers_erase.training.recipes import Recipe, default_recipe


def chosen(
    pipe: Any, vocabulary: Vocabulary | None, *, training: bool
) -> tuple[Recipe | Edit, str]:
    """Trained where a vocabulary says what must survive and the model can be trained, else solved.

    Args:
        pipe: the base.
        vocabulary: other concepts, if somebody listed them.
        training: whether something was asked for that only training has.

    Returns:
        The recipe, and a sentence that says why.
    """
    trained = default_recipe(vocabulary)
    if training:
        return trained, "what was asked for is a matter of training"
    reason = untrainable(pipe)
    if reason:
        return CLOSED_FORM, f"{reason}; this one needs the text encoders alone"
    if vocabulary is None:
        return CLOSED_FORM, (
            "without a vocabulary there is nothing to train preservation on; this one spares the "
            "tokenizer's own words"
        )
    return trained, (
        "the vocabulary says what must survive, and training hurts the nearest words of it least"
    )


def untrainable(pipe: Any) -> str:
    """Why no eraser can be trained on this pipeline; empty if one can."""
    unet = getattr(pipe, "unet", None)
    if unet is None:
        return f"'{type(pipe).__name__}' has no UNet to train on"
    config = unet.config
    needs_more = (
        type(unet).__name__ != "UNet2DConditionModel"
        or config.in_channels != config.out_channels
        or config.addition_embed_type
        or config.encoder_hid_dim_type
        or config.class_embed_type
        or not isinstance(config.sample_size, int)
    )
    return f"'{type(pipe).__name__}' needs more than a prompt" if needs_more else ""
