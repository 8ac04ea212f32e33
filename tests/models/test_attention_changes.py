import torch

from diffusers_erase.models.attention_changes import attention_changes
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.lora import attached
from diffusers_erase.models.text_states import encode


def test_changes_are_the_eraser_s_at_the_inputs_of_the_student(untrained):
    """In the first layer base and student have one input, in the last they have not."""
    unet, outputs = untrained.unet, {}
    z, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor(300)
    states = encode(untrained, ["a car", "an oak"])
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    with attached(unet, parts=("to_k", "to_v"), rank=2, seed=0) as lora:
        for p in lora.parameters:
            torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(1))
        denoiser = Denoiser(unet, NoiseSchedule.of(untrained.scheduler), lora.adapter_disabled)
        changes = attention_changes(denoiser, z, t.expand(2), states)
        assert not any(layer._forward_hooks for layer in layers)
        assert (len(changes), denoiser.evaluations) == (len(layers), 2)

        def keep(name):
            return lambda *call: outputs.setdefault(name, []).append(call[-1].detach())

        for score in (denoiser.student, denoiser.teacher):
            hooks = [layer.register_forward_hook(keep(score.__name__)) for layer in layers]
            score(z, t.expand(2), states)
            for hook in hooks:
                hook.remove()
        plain = [a - b for a, b in zip(outputs["student"], outputs["teacher"], strict=True)]
        assert torch.allclose(changes[0], plain[0], atol=1e-6)
        assert changes[0].abs().max() > 1e-3
        assert not torch.allclose(changes[-1], plain[-1], atol=1e-4)
        with lora.adapter_disabled():
            assert all(not c.any() for c in attention_changes(denoiser, z, t.expand(2), states))
