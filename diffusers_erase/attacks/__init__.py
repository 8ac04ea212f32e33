"""Attacks that bring erased concepts back, one per file, and their registry `ATTACKS`."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from diffusers_erase.attacks.image_editing import DDIMInversion, ImageToImage
from diffusers_erase.attacks.inversion import Inversion, StateInversion
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
        DDIMInversion(iterations=10, text=False),
        TokenSearch(),
        TokenSearch(reference="base"),
        Inversion(),
        StateInversion(),
        RingABell(),
        Relearning(),
        Relearning(data="target"),
    )
}
"""Name -> attack with its default settings, in the order of the access they need."""


def attack_named(name: str, concept: Concept | None = None) -> Attack:
    """The attack of that name, with the concept if it takes one.

    Raises:
        ErasureError: the name is unknown; the message has the nearest ones.
    """
    if name not in ATTACKS:
        raise ErasureError(unknown("attack", name, ATTACKS))
    attack: Any = ATTACKS[name]
    if concept is not None and "concept" in {field.name for field in fields(attack)}:
        attack = replace(attack, concept=concept)
    found: Attack = attack
    return found
