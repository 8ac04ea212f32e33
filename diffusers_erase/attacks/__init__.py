"""Ways back: how much of an erased concept somebody gets who tries."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from diffusers_erase.attacks.image_editing import DDIMInversion, ImageToImage
from diffusers_erase.attacks.inversion import Inversion
from diffusers_erase.attacks.relearning import Relearning
from diffusers_erase.attacks.ring_a_bell import EmbeddingShift, RingABell
from diffusers_erase.attacks.sampling import (
    Completion,
    Noise,
    Paraphrases,
    SeedSearch,
    equal_budget,
)
from diffusers_erase.attacks.tokens import TokenSearch
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Attack, AttackResult, Attempt, run_attack
from diffusers_erase.evaluation.suites import unknown


__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "Attempt",
    "attack_named",
    "equal_budget",
    "run_attack",
]

ATTACKS: Mapping[str, Attack] = {
    attack.name: attack
    for attack in (
        Paraphrases(),
        SeedSearch(),
        Noise(),
        Completion(),
        EmbeddingShift(),
        ImageToImage(),
        DDIMInversion(),
        TokenSearch(),
        TokenSearch(reference="base"),
        Inversion(),
        RingABell(),
        Relearning(),
        Relearning(data="target"),
    )
}
"""By name, with their defaults; in the order of what they take, the least first."""


def attack_named(name: str, concept: Concept | None = None) -> Attack:
    """The attack of that name, told the concept if it can be.

    Raises:
        ErasureError: there is none; the message names the nearest.
    """
    if name not in ATTACKS:
        raise ErasureError(unknown("attack", name, ATTACKS))
    attack: Any = ATTACKS[name]
    if concept is None or "concept" not in {field.name for field in fields(attack)}:
        found: Attack = attack
        return found
    told: Attack = replace(attack, concept=concept)
    return told
