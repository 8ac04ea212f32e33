"""A paper is a row: the rows of an edit in closed form, and how it is solved."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from diffusers_erase.editing.solvers import NullSpace, Regenerate, Remove, Replace, Solver
from diffusers_erase.editing.token_pairs import Tokens
from diffusers_erase.errors import ErasureError


@dataclass(frozen=True)
class Edit:
    """How an eraser is solved for: what is read differently, what is spared, what is held."""

    name: str
    solver: Solver = field(default_factory=Replace)
    tokens: Tokens = "all"
    """Which states of a prompt with the concept are to be read differently."""
    aim: Literal["replace", "tensor"] = "replace"
    """What they are read as: the target's states, or what these do not share with the concept's."""
    prompts: int = 16
    """Prompts of each concept, spread evenly over its templates and synonyms."""
    choose: Literal["given", "nearest", "least-damage"] = "least-damage"
    """How the target is chosen where none is named: among the words that are spared, or (`given`)
    not at all, which means the prompt without the concept."""
    spare: float = 3.0
    """κ, how much what is spared weighs against a concept that is erased."""
    near: int = 16
    """So many of the nearest words weigh as much as all others together."""
    general: bool = False
    """Whether the tokenizer's own words are spared beside those that somebody listed; where nobody
    did, they are in any case."""
    ridge: float = 1e-4
    """λ, relative to the mean square of everything solved for."""
    hold_null: bool = True
    """Whether the empty prompt's states are held exactly."""
    shell: int = 0
    """So many states around each of the concept's own tokens are erased with it (see `shell`)."""
    cosine: tuple[float, float] = (0.8, 1.0)
    """How near those are to it."""
    rank: int = 8
    """Largest rank of the eraser, for each of its concepts, and of the text encoders whose states
    stand one after the other; what is cut off is told."""

    def __post_init__(self) -> None:
        for name in ("prompts", "rank", "ridge"):
            if not getattr(self, name) > 0:
                raise ErasureError(f"`{name}` must be positive; got {getattr(self, name)}.")
        for name in ("spare", "near", "shell"):
            if not getattr(self, name) >= 0:
                raise ErasureError(f"`{name}` must not be negative; got {getattr(self, name)}.")

    @property
    def reads(self) -> bool:
        """Whether it matters how the layers read, and not only what."""
        return isinstance(self.solver, Regenerate) or self.aim == "tensor"

    def numbers(self) -> dict[str, Any]:
        """Every setting as plain JSON types; the solver as it would be written in code."""
        plain: Mapping[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        own = {name: value for name, value in plain.items() if name != "name"}
        return {**own, "solver": repr(self.solver), "cosine": list(self.cosine)}


CLOSED_FORM = Edit("closed-form", general=True)
"""Ours: UCE's problem in context, in means, with the nearest words spared most,
and what nobody listed spared too."""

UCE = Edit("uce", tokens="last", choose="given", near=0)
"""UCE (arXiv 2308.14761): the concept's last token, everything spared alike."""

UCE_TENSOR = replace(UCE, name="uce-tensor", aim="tensor")
"""UCE's first code (arXiv 2308.14761): as the target, without what it shares with the concept."""

RECE = Edit("rece", solver=Regenerate(), choose="given", near=0)
"""RECE (arXiv 2407.12383): what regains the concept is erased again."""

SPEED = Edit("speed", solver=NullSpace(), tokens="last", choose="given", near=0, ridge=0.03)
"""SPEED (arXiv 2503.07392): within the null space of what is spared; its ρ is the ridge, without
which the little of the concept that lies in there is blown up."""

MACE_CFR = Edit("mace-cfr", tokens="around", choose="given", near=0)
"""The closed-form refinement of MACE (arXiv 2403.06135): the words around the concept."""

REALERA = Edit("realera", tokens="last_to_end", choose="given", near=0, shell=8)
"""RealEra's neighbourhood (arXiv 2410.09140, reconstructed): states around the concept too."""

LEACE = Edit("leace", solver=Remove(), tokens="last_to_end", choose="given", near=0)
"""LEACE (arXiv 2306.03819): no linear reader of the states tells the concept afterwards."""

EDITS: dict[str, Edit] = {
    edit.name: edit
    for edit in (CLOSED_FORM, UCE, UCE_TENSOR, RECE, SPEED, MACE_CFR, REALERA, LEACE)
}
