"""Changes that an eraser makes to the outputs of cross-attentions."""

from contextlib import ExitStack
from typing import Any

from torch import Tensor

from diffusers_erase.models.architectures import projections
from diffusers_erase.models.denoiser import Denoiser


def attention_changes(denoiser: Denoiser, z: Tensor, t: Tensor, states: Tensor) -> list[Tensor]:
    """For each text cross-attention its output with the eraser minus that without, at one input.

    Each is B x pixels x channels, with gradients; the input is the one that the layer has in the
    student's pass, which costs one evaluation.
    """
    changes: list[Tensor] = []

    def compare(layer: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        with denoiser.adapter_disabled():
            changes.append(output - layer.forward(*args, **kwargs))

    paths = dict.fromkeys(
        path.rpartition(".to_k")[0] for path in projections(denoiser.unet, ("to_k",))
    )
    with ExitStack() as hooks:
        for path in paths:
            layer = denoiser.unet.get_submodule(path)
            hooks.callback(layer.register_forward_hook(compare, with_kwargs=True).remove)
        denoiser.student(z, t, states)
    return changes
