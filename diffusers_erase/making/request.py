"""A checked request to `erase()`, and checks of the pipeline."""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from warnings import warn

from torch import Tensor
from tqdm.auto import tqdm

from diffusers_erase.concepts import Concept, Kind, Vocabulary, with_article
from diffusers_erase.concepts.kinds import PLACES, placed
from diffusers_erase.concepts.phrases import concept_of, kind_among, merged, single
from diffusers_erase.concepts.words import singulars, words_of
from diffusers_erase.editing.naming import Named
from diffusers_erase.editing.recipes import EDITS, Edit
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig, versions
from diffusers_erase.eraser.schema import problem_of
from diffusers_erase.errors import ErasureError, require_choice, shown
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import unknown_words, whole_words
from diffusers_erase.runtime.plugin import erasure_names
from diffusers_erase.training.recipes import RECIPES, Recipe
from diffusers_erase.training.targets import Fixed, Target
from diffusers_erase.training.trial import Trial


ConceptLike = str | Concept | Sequence[str | Concept]
"""One concept or a sequence of concepts, each by its name alone or as a `Concept`."""


@dataclass(frozen=True)
class Request:
    """The eraser that is asked for."""

    concepts: tuple[Concept, ...]
    recipe: Recipe | Edit
    vocabulary: Vocabulary | None
    target: Target | None
    """None if the recipe chooses the targets."""
    keep: tuple[str, ...]
    """Prompts whose pictures stay as they are, approximately."""
    protect: tuple[str, ...]
    """Prompts that do not change at all."""
    seed: int
    attempt: int = 0
    """Number of tries before this one; each has its own checkpoints."""

    def __post_init__(self) -> None:
        names = [{"name": c.name, "synonyms": list(c.synonyms)} for c in self.concepts]
        targets = self.target.words if isinstance(self.target, Fixed) else ()
        answers = [{"name": "concept", "target": word} for word in targets]
        for what, listed in (("these concepts", names), ("this target", answers or names)):
            if problem := problem_of({"concepts": listed}):
                raise ErasureError(f"An eraser with {what} could not be saved: {problem}.")
        kinds: dict[tuple[str, ...], Kind] = {}
        for concept in self.concepts:
            words = words_of(concept.name) or (concept.name,)
            if (kind := kinds.setdefault(words, concept.kind)) != concept.kind:
                raise ErasureError(
                    f"{concept.name!r} is to be erased as {with_article(kind)} and as "
                    f"{with_article(concept.kind)}; make an eraser of each, and load both."
                )
        self._check_kept()

    def _check_kept(self) -> None:
        """Raise if a prompt that is to be kept names a concept, beside longer listed words."""
        kept = (*self.keep, *self.protect)
        near = Named(self.concepts) if kept else None
        for prompt in kept:
            for concept in near.near(prompt) if near else ():
                if concept.is_named_in(self._without_longer_words(concept, prompt)):
                    raise ErasureError(
                        f"{prompt!r} is to be kept and names '{concept.name}', which is to be "
                        "erased; leave one of them out, or list a longer word that is a thing of "
                        "its own ('fire truck', for 'truck') in the vocabulary."
                    )

    def _without_longer_words(self, concept: Concept, prompt: str) -> str:
        """The prompt without the vocabulary's words in which the concept is named."""
        for word in self.vocabulary.words if self.vocabulary else ():
            if concept.is_named_in(word) and not concept.is_named_by(word):
                prompt = re.sub(rf"\b{re.escape(word)}", "", prompt, flags=re.IGNORECASE)
        return prompt

    @property
    def rank(self) -> int:
        """Rank of a trained eraser: the recipe's for each concept."""
        return self.recipe.rank * len(self.concepts)

    def protected_states(self, model: Model) -> Tensor | None:
        """Text states of the prompts that must not change, P x tokens x width; None for none."""
        prompts = [*([""] if self.recipe.protect_null else []), *self.protect]
        return model.encode(prompts) if prompts else None


def as_recipe(recipe: str | Recipe | Edit) -> Recipe | Edit:
    """The recipe itself, or the one of that name.

    Raises:
        ErasureError: there is none of that name; the message has the nearest.
    """
    if isinstance(recipe, Recipe | Edit):
        return recipe
    known: dict[str, Recipe | Edit] = {**RECIPES, **EDITS}
    require_choice("recipe", recipe, sorted(known))
    return known[recipe]


def as_edit(name: str) -> Edit:
    """The solved recipe of that name."""
    recipe = as_recipe(name)
    if not isinstance(recipe, Edit):
        raise ErasureError(
            f"Recipe '{name}' is trained, not solved. Solved are: {', '.join(sorted(EDITS))}."
        )
    return recipe


def as_concepts(
    concept: ConceptLike,
    kind: Kind | None = None,
    vocabulary: Vocabulary | None = None,
    *,
    tokenizer: Any = None,
    verbose: bool = False,
) -> tuple[Concept, ...]:
    """One or more concepts, each once.

    A `Concept` is taken as it is. A string is a name, or a name in a frame such as `in the style of
    X`; it is of this kind, or of the one that its words or those of the vocabulary tell. With a
    `tokenizer`, a plural is erased in the singular too (`in_the_singular`). With `verbose` it is
    printed to stderr where that is not what was written.

    Raises:
        ErasureError: none at all, something else than a name, or a string that lists names.
    """
    among = kind_among(vocabulary.words) if vocabulary else None
    listed = _listed(concept)
    for sentence in understood(listed, kind, vocabulary, tokenizer) if verbose else ():
        tqdm.write(sentence, file=sys.stderr)
    concepts = [
        each
        if isinstance(each, Concept)
        else in_the_singular(concept_of(single(each), kind, among=among), tokenizer)
        for each in listed
    ]
    return merged(concepts)


def in_the_singular(concept: Concept, tokenizer: Any) -> Concept:
    """The concept under its name in the singular, and in the plural, as far as these are known.

    Erasing `cars` alone leaves `a photo of a car` as it is. The singular is used if the tokenizer
    has a token for its last word, the plural unless the tokenizer splits it into fragments.
    """
    usual = concept.name.lower() in PLACES or placed(concept.name) == concept.name
    if concept.kind not in ("object", "compound", "place") or usual:
        return concept
    ways = singulars(concept.name) if tokenizer is not None else ()
    known = set(whole_words(tokenizer)) if ways else ()
    one = next((way for way in ways if way.split(" ")[-1] in known), None)
    if one is None:
        return concept
    plurals = () if unknown_words(tokenizer, concept.name) else (concept.name,)
    return replace(concept, name=one, synonyms=plurals)


def understood(
    concept: ConceptLike,
    kind: Kind | None = None,
    vocabulary: Vocabulary | None = None,
    tokenizer: Any = None,
) -> list[str]:
    """Sentences about names and kinds that are others than what was written; empty if none are."""
    sentences = []
    for each in _listed(concept):
        (meant,) = as_concepts([each], kind, vocabulary, tokenizer=tokenizer)
        written = each.strip() if isinstance(each, str) else each.name
        told = meant.inferred or (isinstance(each, str) and kind is None)
        what = with_article(meant.kind) if told and meant.kind != "object" else ""
        if meant.name != written:
            names = meant.names if isinstance(each, str) else (meant.name,)
            what = f"the {meant.kind} {' or '.join(map(repr, names))}"
        if what:
            literal = "" if meant.name == written else f", or Concept({written!r}) for these words"
            sentences.append(f"{written!r} is treated as {what}; pass kind= to change{literal}.")
    return sentences


def _listed(concept: ConceptLike) -> tuple[str | Concept, ...]:
    given: Any = (concept,) if isinstance(concept, str | Concept) else concept
    listed = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(each, str | Concept) for each in listed):
        raise ErasureError(
            f"What to erase is a name, a `Concept`, or a sequence of these; got {given!r}."
        )
    if not listed:
        raise ErasureError("There is no concept to erase; name one, for example 'car'.")
    return listed


def as_vocabulary(words: Sequence[str] | Vocabulary | None) -> Vocabulary | None:
    """A vocabulary, also from plain words."""
    if words is None or isinstance(words, Vocabulary):
        return words
    return Vocabulary(as_strings("vocabulary", words))


def as_strings(name: str, strings: Sequence[str]) -> tuple[str, ...]:
    """A sequence of strings as a tuple; `name` is the argument's."""
    if isinstance(strings, str):
        raise ErasureError(f"`{name}` is a sequence of strings, not one string.")
    given: Any = strings
    listed = tuple(given) if isinstance(given, Iterable) else (given,)
    for each in listed:
        if not isinstance(each, str):
            raise ErasureError(f"`{name}` is a sequence of strings; got {each!r}.")
    return listed


def config_of(
    model: Model, request: Request, concepts: Sequence[ErasedConcept], **known: Any
) -> EraserConfig:
    """The config of the eraser that was made.

    `known` are further fields; its `parameters` are added to those of the request.
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


def require_erasable(model: Model) -> None:
    """Raise unless prompts can be encoded and neither erasures nor adapters are loaded."""
    if model.textless:
        raise ErasureError(
            f"Cannot erase here: {model.textless}. Pass a pipeline with `encode_prompt` and its "
            "text encoders, such as StableDiffusionPipeline."
        )
    loaded = erasure_names(model)
    if loaded:
        raise ErasureError(
            f"The pipeline has erasures loaded ({', '.join(loaded)}), and erasers are made from "
            "the bare base; call `pipe.unload_erasures()` first."
        )
    if any(getattr(encoder, "peft_config", None) for encoder in model.text_encoders):
        raise ErasureError(
            "A text encoder has adapters loaded, and erasers are made from the bare base; call "
            "`pipe.unload_lora_weights()` first."
        )


def require_general(request: Request) -> None:
    """Raise unless general prompts are kept, whose statistics `prior` has."""
    recipe = request.recipe
    if isinstance(recipe, Edit):
        keeps = recipe.keeps_general(request.vocabulary)
    else:
        chosen = recipe.choose == "trial" and request.target is None
        keeps = recipe.warm or chosen or isinstance(request.target, Trial)
    if not keeps:
        raise ErasureError(
            f"Recipe '{recipe.name}' keeps no general prompts here and does not use `prior`; leave "
            "it out."
        )


def check_words(model: Model, request: Request) -> None:
    """Check that the text encoder can read all names and targets; further tries are not checked.

    It warns of words that the tokenizer splits into fragments: erasing those erases nothing.

    Raises:
        ErasureError: a name or a target does not fit into a prompt.
    """
    if request.attempt:
        return
    names = [name for concept in request.concepts for name in concept.names]
    targets = request.target.words if isinstance(request.target, Fixed) else ()
    most = model.tokenizer.model_max_length
    for phrase in (*names, *targets):
        count = len(model.tokenizer(f"a photo of {with_article(phrase)}").input_ids)
        if count > most:
            raise ErasureError(
                f"{shown(phrase, 60)!r} is too long: a prompt with it has {count} tokens, and the "
                f"text encoder reads {most}. Name what is to be erased in a few words."
            )
    for phrase in (*names, *targets):
        for word, near in unknown_words(model.tokenizer, phrase).items():
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            warn(f"The text encoder does not know the word {word!r}.{hint}", stacklevel=4)
