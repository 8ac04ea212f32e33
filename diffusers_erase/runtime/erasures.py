"""The erasers on one denoiser, in every mode; they change all at once or not at all."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import Tensor, nn

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.models.architectures import reads_text, text_weights
from diffusers_erase.runtime.adapting import Adapted
from diffusers_erase.runtime.baking import Baked
from diffusers_erase.runtime.hooking import Hooked
from diffusers_erase.runtime.loaded_eraser import Backend, Keep, LoadedEraser, Mode, Planning


BACKENDS: dict[Mode, Callable[[], Backend]] = {"bake": Baked, "hook": Hooked, "adapter": Adapted}
"""Mode -> backend. Baking plans first: it knows the weights without erasers."""


@dataclass
class Erasures:
    """The erasers of a denoiser, kept as its attribute: pipelines that share it share them."""

    loaded: dict[str, LoadedEraser] = field(default_factory=dict)
    backends: dict[Mode, Backend] = field(
        default_factory=lambda: {mode: make() for mode, make in BACKENDS.items()}
    )
    keep: Keep = True
    """Where the weights without erasers are kept."""
    states: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    """Prompts about an eraser's concepts -> their N x width text states, once encoded."""
    grams: dict[str, tuple[EraserAdapter, Tensor]] = field(default_factory=dict)
    """Name -> eraser with a text map, and the map's `gram` on these weights, once computed."""

    def become(
        self, denoiser: nn.Module, loaded: dict[str, LoadedEraser], keep: Keep | None = None
    ) -> None:
        """Make exactly these erasers act; all is computed and checked before the first change.

        Whoever adds an eraser has checked that it fits the denoiser.

        `keep` says where weights without erasers are kept; None leaves it as it is.

        Raises:
            ErasureError: an eraser cannot act in its mode; nothing is changed.
        """
        planning = Planning(self.keep if keep is None else keep)
        changes = [
            backend.plan(denoiser, _of_mode(loaded, mode), planning)
            for mode, backend in self.backends.items()
        ]
        with ExitStack() as back:
            for change in changes:
                back.callback(change.undo)
                change.apply()
            back.pop_all()
        self.loaded, self.keep = loaded, planning.keep

    def bases(self, denoiser: nn.Module) -> dict[str, Tensor]:
        """Path -> weight of every layer that reads the text, without erasers where that is kept."""
        found = text_weights(denoiser)
        for backend in self.backends.values():
            found |= {path: W for path, W in backend.bases().items() if reads_text(path)}
        return found

    def acting(self, denoiser: nn.Module) -> dict[str, float]:
        """Name -> share of each eraser's change that acts now, in the order of loading."""
        found: dict[str, float] = {}
        for mode, backend in self.backends.items():
            found |= backend.acting(denoiser, _of_mode(self.loaded, mode))
        return {name: found[name] for name in self.loaded}


def _of_mode(loaded: dict[str, LoadedEraser], mode: Mode) -> dict[str, LoadedEraser]:
    """The erasers of a mode, sorted by name: results do not depend on the order of loading."""
    return {name: loaded[name] for name in sorted(loaded) if loaded[name].mode == mode}
