"""Closed-form recipes, one row per paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from diffusers_erase.editing.alignment import Tokens
from diffusers_erase.editing.solvers import NullSpace, Regenerate, Remove, Replace, Solver
from diffusers_erase.errors import ErasureError, require_choice


Aim = Literal["replace", "tensor"]

Choose = Literal["given", "nearest", "least-damage"]
"""Ways to choose a target: see `editing.edit`."""


@dataclass(frozen=True)
class Edit:
    """A closed-form recipe: the states it replaces, keeps and protects, and its solver."""

    name: str
    solver: Solver = field(default_factory=Replace)
    tokens: Tokens = "all"
    """Which text states of a prompt with the concept are replaced."""
    aim: Aim = "replace"
    """Replacements: the target's states, or the part of these that the concept's do not share."""
    prompts: int = 16
    """Prompts of each concept, spread evenly over its templates and synonyms."""
    choose: Choose = "least-damage"
    """Rule that chooses a target among the kept words if none is named; `given` chooses none, and
    the target is the prompt without the concept."""
    keep_weight: float = 3.0
    """κ, the weight of all that is kept against a concept that is erased."""
    near: int = 16
    """Number of nearest words that weigh as much as all others together."""
    general: bool = False
    """The tokenizer's own words are kept too; without a vocabulary they always are."""
    ridge: float = 1e-4
    """λ, relative to the mean square of everything solved for."""
    protect_null: bool = True
    """The empty prompt's states do not change at all, in float32 (else `keep_null`)."""
    shell: int = 0
    """Number of states around each of the concept's own tokens that are erased too (`shell`)."""
    cosine: tuple[float, float] = (0.8, 1.0)
    """Range of their cosines with it."""
    rank: int = 8
    """Largest rank of the eraser, for each of its concepts and for each text encoder whose states
    stand one after another; less where less keeps 99.9 % of the change's energy. The energy that is
    kept is in the config."""

    def __post_init__(self) -> None:
        require_choice("`tokens`", self.tokens, get_args(Tokens))
        require_choice("`aim`", self.aim, get_args(Aim))
        require_choice("`choose`", self.choose, get_args(Choose))
        if isinstance(self.solver, type) or not callable(self.solver):
            raise ErasureError(
                f"`solver` is a solver such as `Replace()` or `Regenerate()`; got {self.solver!r}."
            )
        if not -1 <= self.cosine[0] <= self.cosine[1] <= 1:
            raise ErasureError(f"`cosine` is a range within -1 and 1; got {self.cosine}.")
        for name in ("prompts", "rank", "ridge"):
            if not getattr(self, name) > 0:
                raise ErasureError(f"`{name}` must be positive; got {getattr(self, name)}.")
        for name in ("keep_weight", "near", "shell"):
            if not getattr(self, name) >= 0:
                raise ErasureError(f"`{name}` must not be negative; got {getattr(self, name)}.")

    @property
    def reads(self) -> bool:
        """True if the solution depends on the weights of the layers that read the text."""
        return isinstance(self.solver, Regenerate) or self.aim == "tensor"

    def keeps_general(self, vocabulary: object) -> bool:
        """True if general prompts are kept, beside those about the vocabulary or instead of it."""
        return self.general or vocabulary is None

    def numbers(self) -> dict[str, Any]:
        """Every setting as plain JSON types; the solver as it would be written in code."""
        plain: Mapping[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        own = {name: value for name, value in plain.items() if name != "name"}
        return {**own, "solver": repr(self.solver), "cosine": list(self.cosine)}


CLOSED_FORM = Edit("closed-form", general=True)
"""Ours: UCE's problem in context, in means, with the nearest words kept most, and the tokenizer's
own words kept too."""

UCE = Edit("uce", tokens="last", choose="given", near=0)
"""UCE (arXiv 2308.14761): the concept's last token, everything kept alike."""

UCE_TENSOR = replace(UCE, name="uce-tensor", aim="tensor")
"""UCE's first code (arXiv 2308.14761): as the target, without what it shares with the concept."""

RECE = Edit("rece", solver=Regenerate(), choose="given", near=0)
"""RECE (arXiv 2407.12383): what regains the concept is erased again."""

SPEED = Edit("speed", solver=NullSpace(), tokens="last", choose="given", near=0, ridge=0.03)
"""SPEED (arXiv 2503.07392): within the null space of what is kept; its ρ is the ridge, without
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
