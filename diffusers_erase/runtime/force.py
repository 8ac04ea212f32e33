"""What is loaded: an eraser, how strongly, and by which means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from diffusers_erase.adapter import EraserAdapter


Mode = Literal["bake", "hook"]
"""In the weights, or added to the output of the layers while they run."""


@dataclass(frozen=True)
class Active:
    """An eraser as it is loaded."""

    adapter: EraserAdapter
    strength: float
    mode: Mode = "bake"


def by_mode(loaded: Mapping[str, Active], mode: Mode) -> dict[str, Active]:
    """Those that act by this means, in the order of their names: that of loading is no matter."""
    return {name: loaded[name] for name in sorted(loaded) if loaded[name].mode == mode}
