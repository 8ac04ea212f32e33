"""Random text states near the concept's, which stand for it in training."""

from dataclasses import dataclass
from zlib import crc32

import torch

from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.shell import shell
from diffusers_erase.training.inner_loop import PassiveLoop, Views
from diffusers_erase.training.targets import TargetContext


@dataclass(frozen=True)
class NearbyStates:
    """|c| (s c/|c| + sqrt(1 - s^2) z),  s ~ U[cosine], z a random direction orthogonal to c

    For each token's state c of the concept's prompts but the first, which all prompts share: the
    neighbourhood of RealEra (arXiv 2410.09140, reconstructed). The view `concept` gets the role
    `role`, with other states at every step; nothing is learnt.
    """

    cosine: tuple[float, float] = (0.8, 1.0)
    role: str = "adversary"

    def __post_init__(self) -> None:
        if not (
            isinstance(self.cosine, tuple)
            and [*map(type, self.cosine)] == [float] * 2
            and 0 <= self.cosine[0] <= self.cosine[1] <= 1
        ):
            raise ErasureError(
                f"`cosine` is a range in 0 .. 1, such as (0.8, 1.0); got {self.cosine}."
            )

    def begin(self, context: TargetContext, *, seed: int) -> "NearbyStatesLoop":
        """The inner loop; it has no state."""
        return NearbyStatesLoop(self, seed)


@dataclass(frozen=True)
class NearbyStatesLoop(PassiveLoop):
    """Adds the states to the view `concept`."""

    settings: NearbyStates
    seed: int

    def __call__(self, step: int, views: Views) -> Views:
        """The view `concept` with the role of the settings."""
        view = views["concept"]
        states = view.states["concept"]
        own = crc32(self.settings.role.encode())
        chance = torch.Generator().manual_seed(self.seed * 1_000_003 + step + own)
        rows = states[:, 1:].flatten(0, 1).cpu()
        around = shell(rows, 1, cosine=self.settings.cosine, generator=chance).to(states)
        near = torch.cat((states[:, :1], around.unflatten(0, states[:, 1:].shape[:2])), 1)
        return {**views, "concept": view.with_role(self.settings.role, near)}
