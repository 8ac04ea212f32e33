"""A paper is a row: the numbers an eraser is trained with."""

from dataclasses import dataclass

from diffusers_erase.crossattention import PARTS
from diffusers_erase.errors import ErasureError


@dataclass(frozen=True)
class Recipe:
    """How an eraser is trained: what is sampled, what is changed, how far and how fast."""

    name: str
    eta: float = 0.0
    """How much further than the target the concept is pushed away from itself (ESD)."""
    parts: tuple[str, ...] = ("to_k", "to_v")
    """Trained projections of every cross-attention; `to_k` and `to_v` see the text alone."""
    rank: int = 4
    guidance: float = 5.0
    """Scale of classifier-free guidance on the sampled trajectories."""
    trajectories: int = 16
    """Prompts sampled at most, spread evenly over the concept's prompts and synonyms."""
    sampling_steps: int = 15
    """DDIM steps of each: latents kept per prompt."""
    steps: int = 120
    batch: int = 16
    learning_rate: float = 1e-3
    keep_weight: float = 4.0
    """Weight of the kept prompts, if any are given."""

    def __post_init__(self) -> None:
        for name in ("rank", "trajectories", "sampling_steps", "steps", "batch", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ErasureError(f"`{name}` must be positive; got {getattr(self, name)}.")
        if not self.parts or set(self.parts) - set(PARTS):
            raise ErasureError(f"`parts` are some of {', '.join(PARTS)}; got {self.parts!r}.")


REPLACE = Recipe("replace")
"""Answer the concept as its target: AGE's erase term as published (arXiv 2501.18950)."""

ESD = Recipe("esd", eta=1.0)
"""ESD (arXiv 2303.07345): push away from the concept too; here in context and as a LoRA."""

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (REPLACE, ESD)}
