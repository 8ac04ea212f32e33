"""The erasers on one denoiser, by whichever means, changed all at once or not at all."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from diffusers_erase.eraser.lora import Lora
from diffusers_erase.models.architectures import reads_text, text_layers, text_weights
from diffusers_erase.runtime.adapting import Adapted, check_unfused
from diffusers_erase.runtime.baking import Baked, Keep, undo
from diffusers_erase.runtime.hooking import Hooked
from diffusers_erase.runtime.loaded_eraser import LoadedEraser, by_mode


@dataclass
class Erasures:
    """Kept on the denoiser, so that pipelines which share it see the same."""

    loaded: dict[str, LoadedEraser] = field(default_factory=dict)
    baked: Baked = field(default_factory=Baked)
    hooked: Hooked = field(default_factory=Hooked)
    adapted: Adapted = field(default_factory=Adapted)
    keep: Keep = True
    """Where the pristine weights are, if anywhere."""
    states: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    """Prompts about an eraser's concepts -> their N x width text states, once encoded."""

    def become(
        self, unet: nn.Module, loaded: dict[str, LoadedEraser], keep: Keep | None = None
    ) -> None:
        """Make `loaded` the erasers in force; all is computed and checked before the first change.

        Args:
            unet: the denoiser.
            loaded: name -> eraser.
            keep: where the pristine weights go; None for as before.

        Raises:
            ErasureError: an eraser does not fit, or weights cannot be rewritten; nothing is
                changed.
        """
        for eraser in loaded.values():
            eraser.adapter.check(unet)
        if self.adapted.worn or by_mode(loaded, "adapter"):
            check_unfused(unet)
        keep = self.keep if keep is None else keep
        writes = self.baked.plan(unet, by_mode(loaded, "bake"))
        pristine = {path: write.base for path, write in writes.items()}
        if not keep:
            loaded = {name: _settled(eraser, unet, pristine) for name, eraser in loaded.items()}
            writes = self.baked.plan(unet, by_mode(loaded, "bake"))
        hooks = self.hooked.plan(unet, by_mode(loaded, "hook"), pristine)
        worn, layers = dict(self.adapted.worn), self.baked.layers
        with ExitStack() as back:
            back.callback(self.adapted.apply, unet, worn, pristine)
            self.adapted.apply(unet, by_mode(loaded, "adapter"), pristine)
            back.callback(setattr, self.baked, "layers", layers)
            self.baked.apply(writes, keep)
            back.callback(undo, writes.values())
            self.hooked.apply(hooks)
            back.pop_all()
        self.loaded, self.keep = loaded, keep

    def bases(self, unet: nn.Module) -> dict[str, Tensor]:
        """Path -> weight of every layer that reads the text, without erasers where that is kept."""
        known = ((path, written.base) for path, written in self.baked.layers.items())
        kept = {path: base for path, base in known if base is not None and reads_text(path)}
        return {**text_weights(unet), **kept}

    def acting(self, unet: nn.Module) -> dict[str, float]:
        """Name -> how much of each acts now; in the order of loading."""
        found = self.baked.acting(unet, by_mode(self.loaded, "bake"))
        found |= self.hooked.acting(unet, by_mode(self.loaded, "hook"))
        found |= self.adapted.acting(unet, by_mode(self.loaded, "adapter"))
        return {name: found[name] for name in self.loaded}


def _settled(eraser: LoadedEraser, unet: Any, pristine: dict[str, Tensor]) -> LoadedEraser:
    """A text map as the factors it has here, which W0 is not needed for."""
    T = eraser.adapter.text_map
    if T is None or eraser.mode != "bake":
        return eraser
    weights = {path: pristine[path] for path in text_layers(unet)}
    settled = replace(eraser.adapter, payloads=(Lora(T.factors(weights)),))
    return replace(eraser, adapter=settled)
