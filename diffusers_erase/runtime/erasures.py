"""The erasers on one denoiser, by whichever means, changed all at once or not at all."""

from dataclasses import dataclass, field

from torch import nn

from diffusers_erase.runtime.baking import Baked, undo
from diffusers_erase.runtime.force import Active, by_mode
from diffusers_erase.runtime.hooking import Hooked


@dataclass
class Erasures:
    """Kept on the denoiser, so that pipelines which share it see the same."""

    loaded: dict[str, Active] = field(default_factory=dict)
    baked: Baked = field(default_factory=Baked)
    hooked: Hooked = field(default_factory=Hooked)
    disabled: bool = False
    """Inside `erasures_disabled`: nothing may change until its end."""

    def become(self, unet: nn.Module, loaded: dict[str, Active]) -> None:
        """Make `loaded` the erasers in force; all is computed and checked before the first change.

        Raises:
            ErasureError: an eraser does not fit, or weights cannot be rewritten; nothing is
                changed.
        """
        for force in loaded.values():
            force.adapter.check(unet)
        writes = self.baked.plan(unet, by_mode(loaded, "bake"))
        pristine = {path: write.pristine.weight for path, write in writes.items()}
        hooks = self.hooked.plan(unet, by_mode(loaded, "hook"), pristine)
        former = dict(self.baked.pristine)
        self.baked.apply(writes)
        try:
            self.hooked.apply(hooks)
        except BaseException:
            undo(list(writes.values()))
            self.baked.pristine = former
            raise
        self.loaded = loaded

    def acting(self, unet: nn.Module) -> dict[str, float]:
        """Name -> how much of each acts now; in the order of loading."""
        found = self.baked.acting(unet, by_mode(self.loaded, "bake"))
        found |= self.hooked.acting(unet, by_mode(self.loaded, "hook"))
        return {name: found[name] for name in self.loaded}
