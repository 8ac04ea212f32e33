"""`edit()` solves for the text map that erases concepts, without evaluating the UNet."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from torch import Tensor

from diffusers_erase.concepts import Concept, Vocabulary
from diffusers_erase.concepts.candidates import SYNONYM, comparable, proposed
from diffusers_erase.editing.choosing import choose, distances, general_names, things_among
from diffusers_erase.editing.keeping import kept_beside
from diffusers_erase.editing.naming import Named
from diffusers_erase.editing.own_prompts import OwnStatistics, own_words
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.editing.shortlist import MANY, shortlisted
from diffusers_erase.editing.solvers import Problem, solved_within, weights_gram
from diffusers_erase.editing.states import states_and_targets
from diffusers_erase.editing.texts import Texts, evenly
from diffusers_erase.editing.token_pairs import without_shared_part
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.storage.tensor_cache import KeptTensors, TensorCache


@dataclass(frozen=True)
class Edited:
    """The solution of an edit."""

    map: TextMap
    choices: tuple[ErasedConcept, ...]
    rank: int
    """Rank of the exact solution; that of the map may be lower."""
    kept: float
    """Share of the change's energy that the map keeps."""


def edit(
    texts: Texts,
    concepts: Sequence[Concept],
    recipe: Edit,
    *,
    targets: Sequence[str | None] | None = None,
    vocabulary: Vocabulary | None = None,
    keep: Sequence[str] = (),
    protect: Sequence[str] = (),
    weights: Mapping[str, Tensor] | None = None,
    statistics: Callable[[], OwnStatistics] | None = None,
    cache: TensorCache | KeptTensors | None = None,
    encoder: str = "",
    seed: int = 0,
) -> Edited:
    """Solve for the text map that replaces the concepts' states by those of their targets.

    Args:
        texts: the text encoder and its tokenizer.
        concepts: what is to be erased.
        recipe: the numbers and choices of the edit.
        targets: one for each concept, None for the prompt without it; by default the recipe's.
        vocabulary: words to keep, candidates for targets; by default the tokenizer's frequent ones.
        keep: prompts that should change as little as possible.
        protect: prompts that do not change at all.
        weights: path -> out x width, of the layers that read the text; few solvers need them.
        statistics: returns those of general prompts; called if these are kept.
        cache: where statistics of other long lists of prompts are stored.
        encoder: a name for the text encoder's exact weights, for the cache.
        seed: of the shell.

    Raises:
        ErasureError: a target that is the concept itself, protected prompts that span all text,
            states that are not finite, an ill-conditioned system.
    """
    cache = cache or KeptTensors()
    chosen = targets is None and recipe.choose != "given"
    general = recipe.keeps_general(vocabulary)
    known = (statistics or partial(OwnStatistics.of, texts))() if general else None
    kept_words = known.without(texts, concepts) if known else None
    own = own_words(texts.tokenizer) if general or chosen else ()
    listed = vocabulary.others(concepts) if vocabulary else ()
    near: list[Sequence[str]] = [own for _ in concepts]
    if len(own) > MANY and kept_words and (chosen or recipe.near):
        near = [
            shortlisted(texts, c, kept_words) if c.kind not in ("attribute", "place") else own
            for c in concepts
        ]
    named = Named(concepts)
    others = {w for w in {*chain(*near)} if not any(c.is_named_by(w) for c in named.near(w))}
    things = things_among(own) if chosen else []
    wide = {c.name for c in concepts if general_names(texts, c, things)} if chosen else set[str]()
    proposals = (
        _proposals(concepts, vocabulary, near, own, wide, named) if chosen else [[]] * len(concepts)
    )
    compared = [
        [*(listed if chosen or recipe.near else ()), *(w for w in row if general and w in others)]
        for row in (near if chosen or recipe.near else [()] * len(concepts))
    ]
    brief = 1 if len(own) > MANY else None
    measured = distances(texts, concepts, _compared(concepts, compared, proposals), brief)
    apart = [{w: d for w, d in row.items() if d > SYNONYM} for row in measured]
    G = weights_gram(weights) if weights and recipe.reads else None
    unchanged = [*([""] if recipe.protect_null else []), *protect]
    Q = row_space(texts.encode(unchanged)) if unchanged else None
    S = kept_beside(
        texts,
        concepts,
        listed,
        apart,
        recipe.near,
        keep=keep,
        general=kept_words.gram if kept_words else None,
        cache=cache,
        encoder=encoder,
    )
    if chosen:
        rivals = [
            [w for w in row if (w in listed if vocabulary else w in among or len(own) <= MANY)]
            for row, among in zip(apart, [{*words} for words in near], strict=True)
        ]
        asked = (texts, concepts, proposals, measured, rivals, recipe, S, Q)
        choices = choose(*asked, general=vocabulary is None, wide=wide)
    else:
        given = targets or [None] * len(concepts)
        choices = [ErasedConcept.of(c, t) for c, t in zip(concepts, given, strict=True)]
    answers = [choice.target for choice in choices]
    rows = states_and_targets(texts, concepts, answers, recipe, seed=seed)
    E, V, count = rows.E, rows.V, rows.count
    if recipe.aim == "tensor":
        V = without_shared_part(E, V, G)
    each = recipe.keep_weight / len(concepts)
    problem = Problem.of(E, V, S, keep_weight=each, ridge=recipe.ridge, protect=Q, G=G, count=count)
    rank = recipe.rank * len(concepts) * texts.count
    map, kept, whole = solved_within(recipe.solver, problem, rank)
    return Edited(map, tuple(choices), whole, kept)


def _proposals(
    concepts: Sequence[Concept],
    vocabulary: Vocabulary | None,
    near: Sequence[Sequence[str]],
    own: Sequence[str],
    wide: Collection[str],
    named: Named,
) -> list[list[str]]:
    """The words that may replace each concept by name and kind: listed ones, or the tokenizer's.

    `near` are the tokenizer's own that are compared with each concept; one that means many things
    (`wide`) may be replaced by any. Without a vocabulary a person is left out. No word shares the
    words of a concept's names.
    """
    some = [own[i] for i in evenly(min(len(own), MANY), len(own))]
    words: Sequence[Sequence[str]] = (
        [vocabulary.words] * len(concepts)
        if vocabulary
        else [
            some if concept.name in wide else row
            for concept, row in zip(concepts, near, strict=True)
        ]
    )
    return [
        [
            w
            for w in proposed(c, (), () if vocabulary is None and c.kind == "person" else each, own)
            if not any(other.names_overlap(w) for other in named.near(w))
        ]
        for c, each in zip(concepts, words, strict=True)
    ]


def _compared(
    concepts: Sequence[Concept],
    known: Sequence[Sequence[str]],
    proposals: Sequence[Sequence[str]],
) -> list[list[str]]:
    """The words whose distance from each concept is measured.

    Those that are kept, and what is proposed for any concept of its kind.
    """
    alike: dict[str, dict[str, None]] = {}
    for concept, each in zip(concepts, proposals, strict=True):
        alike.setdefault(concept.kind, {}).update(dict.fromkeys(each))
    return [
        list(dict.fromkeys([*comparable(concept, row), *alike[concept.kind]]))
        for concept, row in zip(concepts, known, strict=True)
    ]
