"""Training recipes, one row per paper."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from diffusers_erase.concepts import Vocabulary
from diffusers_erase.errors import ErasureError, require_choice
from diffusers_erase.models.architectures import PARTS, SELF_PARTS, TEXT_PARTS
from diffusers_erase.models.model import Model
from diffusers_erase.models.trajectories import Sampler
from diffusers_erase.training.adaptive import Adaptive
from diffusers_erase.training.adversary import LearntWords
from diffusers_erase.training.hard_examples import HardExamples
from diffusers_erase.training.nearby import NearbyStates
from diffusers_erase.training.objectives import (
    Compose,
    Keep,
    KeepOutside,
    Objective,
    Steer,
    SteerGuidance,
    Sum,
)
from diffusers_erase.training.targets import Adversary, Fixed, Nearest, Target
from diffusers_erase.training.trainer import Pace
from diffusers_erase.training.trial import Trial


Choose = Literal["given", "nearest", "trial", "table", "minimax"]
"""Ways to choose a target: see `Recipe.target`."""

VIEWS = {"concept": ("concept", "target", "null"), "kept": ("concept", "null")}
"""View -> roles in it, as far as a recipe samples them; `adversaries` have further ones."""

REAL_WIDTH = 768
"""Text width of Stable Diffusion 1, the smallest of the models that are not toys."""


@dataclass(frozen=True)
class Recipe:
    """A training recipe: losses, target, trained layers, samples and optimiser."""

    name: str
    erase: Objective = field(default_factory=Steer)
    """The term that erases, on the concept's own latents."""
    keep: tuple[tuple[float, Objective], ...] = ()
    """Weighted terms that preserve something on the same latents; each costs a student pass."""
    keep_weight: float = 4.0
    """Weight of the kept prompts and the preservation pool, if there are any."""
    protect_null: bool = False
    """The empty prompt's score does not change at all in float32 (see `models.lora.attached`)."""
    warm: bool = False
    """Training begins at the closed-form edit (see `editing.solving`) instead of at the base."""
    choose: Choose = "given"
    """Rule that chooses a target from a vocabulary if none is named; `given` chooses none, and the
    target is the prompt without the concept."""
    adversaries: tuple[Adversary, ...] = ()
    """Inner loops beside the target; the views pass through them in this order."""
    pool: int = 0
    """Prompts of the preservation pool, about words of the vocabulary."""
    parts: tuple[str, ...] = TEXT_PARTS
    """Trained projections of every cross-attention (`to_k` and `to_v` see the text alone), and of
    the self-attention beside it (`attn1.to_q` ...)."""
    rank: int = 4
    """Rank of the eraser for each of its concepts."""
    guidance: float = 5.0
    """Scale of classifier-free guidance on the sampled trajectories."""
    trajectories: int = 16
    """Prompts sampled per concept, spread evenly over its prompts and synonyms."""
    sampling_steps: int = 15
    """Latents kept per prompt."""
    noised: int = 0
    """Further latents per prompt of the concept: its picture with new noise, at as many times."""
    sampler: Sampler = "ddim"
    refresh: int = 0
    """Steps after which the student samples the concept's latents anew (on-policy, as ESD and AGE
    were released, for every update); 0 keeps those of the base, which cost nothing more."""
    steps: int = 90
    batch: int = 12
    learning_rate: float = 2e-3
    clip: float = 1.0
    """Largest norm of a gradient."""
    accumulate: int = 1
    """Minibatches per step, where memory is short."""

    def __post_init__(self) -> None:
        positive = (
            "rank", "trajectories", "sampling_steps", "steps", "batch", "learning_rate", "clip",
            "accumulate",
        )  # fmt: skip
        for name in positive:
            if not 0 < getattr(self, name) < float("inf"):
                raise ErasureError(f"`{name}` must be positive; got {getattr(self, name)}.")
        for name in ("keep_weight", "pool", "guidance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ErasureError(f"`{name}` must not be negative; got {getattr(self, name)}.")
        if type(self.noised) is not int or self.noised < 0:
            raise ErasureError(f"`noised` is a number of latents, or 0; got {self.noised!r}.")
        if self.noised and self.refresh:
            raise ErasureError(
                "`noised` pictures are the base's, and with `refresh` the student samples: leave "
                "one of them out."
            )
        if not isinstance(self.adversaries, tuple) or not all(
            hasattr(each, "begin") and not isinstance(each, type) for each in self.adversaries
        ):
            raise ErasureError(
                "`adversaries` is a tuple of adversaries, such as (LearntWords(),); got "
                f"{self.adversaries!r}."
            )
        ends = any(getattr(each, "enough", math.inf) < math.inf for each in self.adversaries)
        if self.restart and ends:
            raise ErasureError(
                "An adversary with `enough` would end the run before another one's `rounds` are "
                "over; leave one of them out."
            )
        if self.refresh < 0:
            raise ErasureError(f"`refresh` is a number of steps, or 0; got {self.refresh}.")
        if self.restart >= self.steps:
            raise ErasureError(
                f"`steps` must be more than the {self.restart} of an adversary's search, after "
                f"which the student begins anew; got {self.steps}."
            )
        require_choice("`choose`", self.choose, get_args(Choose))
        require_choice("`sampler`", self.sampler, get_args(Sampler))
        self._check_roles()
        known = (*PARTS, *SELF_PARTS)
        if not self.parts or set(self.parts) - set(known):
            raise ErasureError(f"`parts` are some of {', '.join(known)}; got {self.parts!r}.")
        if (self.warm or self.choose == "trial") and not set(self.parts) & set(TEXT_PARTS):
            raise ErasureError(
                f"`warm` and a choice by `trial` edit {' and '.join(TEXT_PARTS)}, and `parts` have "
                f"neither; got {self.parts!r}. Add one, or set `warm=False` and another `choose`."
            )
        if self.protect_null and self.steers_null:
            raise ErasureError(
                "`protect_null` holds the score of the empty prompt, and a term of the recipe is "
                "to change it; leave one of them out."
            )
        if self.protect_null and set(self.parts) - set(TEXT_PARTS):
            raise ErasureError(
                f"`protect_null` needs that only {' and '.join(TEXT_PARTS)} are trained; got "
                f"{self.parts!r}. Leave it out and preserve the null score by a term in `keep`."
            )

    def _check_roles(self) -> None:
        """Raise unless every role that a term reads is there, once."""
        added = [each.role for each in self.adversaries if hasattr(each, "role")]
        if len({*added, *VIEWS["concept"]}) < len(added) + len(VIEWS["concept"]):
            raise ErasureError(
                "Every adversary needs a `role` of its own, none of "
                f"{', '.join(VIEWS['concept'])}; got {', '.join(map(repr, added))}."
            )
        for view, role in self.loss(keeps=True).roles:
            require_choice("view in a recipe", view, VIEWS)
            if role == "adversary" and not added:
                raise ErasureError(
                    "A term of the recipe has the role `adversary`, and no adversary has; name one "
                    "with this `role` in `adversaries`, such as LearntWords()."
                )
            roles = (*VIEWS[view], *(added if view == "concept" else ()))
            require_choice(f"role in the view `{view}`", role, roles)

    @property
    def pace(self) -> Pace:
        """Steps, batch and learning rate, for the loop."""
        numbers = (self.steps, self.batch, self.learning_rate, self.clip, self.accumulate)
        return Pace(*numbers, restart=self.restart)

    @property
    def restart(self) -> int:
        """Step at which the student begins anew, after the search of an adversary; 0 for never."""
        return max((getattr(each, "restart", 0) for each in self.adversaries), default=0)

    @property
    def steers_null(self) -> bool:
        """True if a term shall change the score of the empty prompt."""
        return any(role == "null" for _, role in self.loss(keeps=False).steers)

    def loss(self, *, keeps: bool) -> Sum:
        """All terms; with `keeps` also the one on the view `kept`."""
        kept = ((self.keep_weight, Keep()),) if keeps else ()
        return Sum(((1.0, self.erase), *self.keep, *kept))

    def target(self, vocabulary: Vocabulary | None) -> Target:
        """The way a target is chosen if the user names none.

        Raises:
            ErasureError: the recipe chooses from a vocabulary, and there is none.
        """
        if self.choose == "given":
            return Fixed()
        if vocabulary is None:
            raise ErasureError(
                f"Recipe '{self.name}' chooses its target from a vocabulary: pass `vocabulary` "
                "(words of other concepts), or name a `target`."
            )
        if self.choose == "nearest":
            return Nearest(vocabulary)
        if self.choose == "trial":
            return Trial(vocabulary)
        return Adaptive(vocabulary, form=self.choose)

    def numbers(self) -> dict[str, Any]:
        """Every setting as plain JSON types; objectives as they would be written in code."""
        plain: Mapping[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **{name: value for name, value in plain.items() if name != "name"},
            "erase": repr(self.erase),
            "keep": [[weight, repr(term)] for weight, term in self.keep],
            "adversaries": [repr(adversary) for adversary in self.adversaries],
            "parts": list(self.parts),
        }


REPLACE = Recipe("replace")
"""Replace the concept by its target: AGE's erase term as published (arXiv 2501.18950)."""

ESD = Recipe("esd", erase=Steer(eta=1.0))
"""ESD (arXiv 2303.07345): push away from the concept too; here in context and as a LoRA."""

ALL_BUT_ONE = Recipe(
    "all-but-one", erase=SteerGuidance(eta=1.0), keep=((1.0, Keep("null", at="concept")),)
)
"""All-but-One (arXiv 2312.12807, reconstructed): guidance changes, a term keeps the null score."""

ANTI_EDITING = Recipe(
    "anti-editing",
    erase=Sum(
        (
            (0.198, Compose((("concept", 3.0), ("target", -3.0)), role="null")),
            (0.002, Steer(eta=3.0)),
        )
    ),
    keep=((0.8, Keep("target", at="concept")),),
    keep_weight=0.8,
    guidance=3.0,
)
"""Anti-editing (arXiv 2501.01633): the empty prompt's score gets the concept's guidance, which
guidance then subtracts from every picture, also from edits whose prompts do not name it."""

_FOUND = (("target", 2.0), ("concept", -0.5), ("adversary", -0.5))

STEREO = Recipe(
    "stereo",
    erase=Compose(_FOUND),
    keep=((1.0, Compose(_FOUND, role="adversary")),),
    adversaries=(LearntWords(every=20, rounds=5),),
    guidance=3.0,
    steps=170,
)
"""STEREO (arXiv 2408.16807): words are searched against 80 steps of erasure, which are then taken
back; the concept and all words are erased once, in 90 steps."""

RECELER = Recipe(
    "receler",
    erase=Steer(eta=1.0, role="adversary"),
    keep=((0.1, KeepOutside(role="adversary")),),
    adversaries=(LearntWords(every=1, updates=5, memory=1, tokens=8, beside=True),),
    guidance=3.0,
)
"""Receler (arXiv 2311.17717): soft tokens behind the prompt, learnt anew before every step, and a
term that holds what cross-attentions do outside the concept."""

AGE = Recipe(
    "age", erase=Steer(eta=0.0), keep=((1.0, Keep("target", at="concept")),), choose="minimax"
)
"""AGE (arXiv 2501.18950) as published: minimax over a learnt mixture of words."""

AGE_TABLE = Recipe(
    "age-table", erase=Steer(eta=0.0), keep=((1.0, Keep("target", at="concept")),), choose="table"
)
"""AGE's choice without gradients: the word with the largest entry in a table of scores."""

REALERA_TRAINED = Recipe(
    "realera-trained",
    warm=True,
    protect_null=True,
    keep=((1.0, Steer(role="adversary")), (1.0, Keep("beyond", at="concept"))),
    adversaries=(NearbyStates(), NearbyStates(cosine=(0.2, 0.6), role="beyond")),
)
"""RealEra (arXiv 2410.09140, reconstructed: its radii are not public): random states near the
concept's are erased too, and those beyond are kept; in closed form first, then trained."""

SURGICAL_AGE = Recipe(
    "surgical-age",
    choose="trial",
    warm=True,
    protect_null=True,
    pool=16,
    trajectories=8,
    sampling_steps=8,
    steps=14,
    batch=8,
    learning_rate=1e-3,
)
"""Ours: begins at the closed-form edit; adaptive target in context, the empty prompt protected, a
preservation pool. The numbers are those of the playground."""

SURGICAL_AGE_SD = replace(
    SURGICAL_AGE,
    name="surgical-age-sd",
    rank=8,
    guidance=7.5,
    pool=32,
    trajectories=16,
    sampling_steps=25,
    steps=500,
    batch=2,
    learning_rate=1e-4,
)
"""The same in numbers for Stable Diffusion 1 and 2, where nothing has been measured yet: usual
guidance, more and smaller steps. SDXL's erasers are not made here yet."""

SURGICAL_REMOVE = replace(
    SURGICAL_AGE,
    name="surgical-remove",
    keep=((2.0, Steer(eta=0.5, role="adversary")), (2.0, Keep("null", at="concept"))),
    keep_weight=12.0,
    protect_null=False,
    adversaries=(
        LearntWords(
            every=30,
            updates=200,
            batch=4,
            learning_rate=0.05,
            spread=0.0,
            mixed=True,
            enough=2.5,
        ),
        HardExamples(every=30),
    ),
    pool=64,
    noised=20,
    parts=(*PARTS, *SELF_PARTS),
    rank=16,
    trajectories=24,
    sampling_steps=10,
    steps=150,
    learning_rate=2e-3,
)
"""Ours, against learnt words: `surgical-age` with both attentions trained, noised pictures, and up
to five rounds of a word learnt against the student and answered, until one is not found. Prompts of
the pool are drawn by how much they have changed. The numbers are those of the playground."""

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        SURGICAL_AGE,
        SURGICAL_AGE_SD,
        AGE,
        AGE_TABLE,
        ALL_BUT_ONE,
        ANTI_EDITING,
        ESD,
        REALERA_TRAINED,
        RECELER,
        REPLACE,
        STEREO,
        SURGICAL_REMOVE,
    )
}


def default_recipe(model: Model, vocabulary: Vocabulary | None) -> Recipe:
    """`surgical-age` for toys and `surgical-age-sd` for models of Stable Diffusion's size.

    Without a vocabulary the target is the prompt without the concept.
    """
    width = getattr(getattr(model.found, "config", None), "cross_attention_dim", None) or 0
    widest = max(width) if isinstance(width, list | tuple) else width
    recipe = SURGICAL_AGE_SD if widest >= REAL_WIDTH else SURGICAL_AGE
    return recipe if vocabulary else replace(recipe, choose="given")
