"""What was asked for, in one form; and whether it can be had."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from warnings import warn

from torch import Tensor

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.editing.recipes import EDITS, Edit
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig, versions
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import unknown_words
from diffusers_erase.runtime.plugin import erasure_names
from diffusers_erase.training.recipes import RECIPES, Recipe
from diffusers_erase.training.targets import Fixed, Target


Erased = str | Concept | Sequence[str | Concept]
"""One concept or several, by name or with everything that is known of them."""


@dataclass(frozen=True)
class Request:
    """An eraser to be made."""

    concepts: tuple[Concept, ...]
    recipe: Recipe | Edit
    vocabulary: Vocabulary | None
    target: Target | None
    keep: tuple[str, ...]
    protect: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        for concept in self.concepts:
            erased = {prompt.text for prompt in concept.example_prompts()}
            for prompt in (*self.keep, *self.protect):
                if concept.is_named_by(prompt) or prompt in erased:
                    raise ErasureError(
                        f"{prompt!r} is to be kept, and '{concept.name}' is to be erased; leave "
                        "one of them out."
                    )

    def held(self, model: Model) -> Tensor | None:
        """States of the prompts that must not change, P x tokens x width, if there are any."""
        prompts = [*([""] if self.recipe.hold_null else []), *self.protect]
        return model.encode(prompts) if prompts else None


def recipe_of(name: str) -> Recipe | Edit:
    """The recipe of that name, trained or solved.

    Raises:
        ErasureError: there is none; names the nearest.
    """
    known: dict[str, Recipe | Edit] = {**RECIPES, **EDITS}
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ErasureError(f"No recipe named {name!r}.{hint} Known: {', '.join(sorted(known))}.")
    return known[name]


def edit_of(name: str) -> Edit:
    """The recipe of that name, if it is solved.

    Raises:
        ErasureError: it is not.
    """
    found = recipe_of(name)
    if not isinstance(found, Edit):
        raise ErasureError(
            f"'{name}' is trained and not solved; solved are {', '.join(sorted(EDITS))}."
        )
    return found


def concepts_of(concept: Erased) -> tuple[Concept, ...]:
    """At least one.

    Raises:
        ErasureError: there is none.
    """
    several = (concept,) if isinstance(concept, str | Concept) else tuple(concept)
    if not several:
        raise ErasureError("There is no concept to erase; name one, for example 'car'.")
    return tuple(each if isinstance(each, Concept) else Concept(each) for each in several)


def vocabulary_of(words: Sequence[str] | Vocabulary | None) -> Vocabulary | None:
    """As users write it."""
    if words is None or isinstance(words, Vocabulary):
        return words
    return Vocabulary(prompts_of("vocabulary", words))


def prompts_of(name: str, several: Sequence[str]) -> tuple[str, ...]:
    """Several, and not one by mistake.

    Raises:
        ErasureError: one string.
    """
    if isinstance(several, str):
        raise ErasureError(f"`{name}` is a sequence of strings, not one string.")
    return tuple(several)


def config_of(
    model: Model, request: Request, concepts: Sequence[ErasedConcept], **known: Any
) -> EraserConfig:
    """Everything an eraser says of itself.

    Args:
        model: what it was made for.
        request: what was asked for.
        concepts: what is erased, with what it is answered as.
        **known: further fields of the config; `parameters` are added to the order's.
    """
    return EraserConfig(
        concepts=tuple(concepts),
        recipe=request.recipe.name,
        parameters={
            **request.recipe.numbers(),
            "seed": request.seed,
            "own_prompts": [prompt for concept in request.concepts for prompt in concept.prompts],
            "kept_prompts": list(request.keep),
            "protected_prompts": list(request.protect),
            **known.pop("parameters", {}),
        },
        base_model=model.name,
        versions=versions(),
        **known,
    )


def check_bare(model: Model) -> None:
    """Erasers are made from the bare base.

    Raises:
        ErasureError: the pipeline wears erasures or adapters.
    """
    loaded = erasure_names(model)
    if loaded:
        raise ErasureError(
            f"The pipeline has erasures loaded ({', '.join(loaded)}); "
            "erasers are made from the bare base: call `pipe.unload_erasures()` first."
        )
    if any(getattr(encoder, "peft_config", None) for encoder in model.text_encoders):
        raise ErasureError(
            "A text encoder wears adapters; erasers are made from the bare base: call "
            "`pipe.unload_lora_weights()` first."
        )


def warn_of_unknown_words(model: Model, request: Request) -> None:
    """To erase what the text encoder spells in fragments erases nothing."""
    names = [name for concept in request.concepts for name in concept.names]
    targets = request.target.words if isinstance(request.target, Fixed) else ()
    for phrase in (*names, *targets):
        for word, near in unknown_words(model.tokenizer, phrase).items():
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            warn(f"The text encoder does not know the word {word!r}.{hint}", stacklevel=4)
