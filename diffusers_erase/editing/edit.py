"""edit(): from texts and a word to a text map, without one evaluation of the UNet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from diffusers_erase.concepts import PROMPTS_PER_WORD, Concept, Kind, Vocabulary, prompts_naming
from diffusers_erase.editing.prior import own_words, spared
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.editing.solvers import Problem, reading_gram, solved_within
from diffusers_erase.editing.solving import reader_beside
from diffusers_erase.editing.token_pairs import Texts, paired, shell, unshared
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import Inverse
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.storage.tensor_cache import TensorCache


SYNONYM = 0.05
"""A word whose states are nearer than this (see `distances`) is another name of the concept."""

SPECIFIC = 0.7
"""A word of the tokenizer's own that says less than this share of what the concept says is general
(`vehicle`, `animal`): it may be drawn as the concept."""

SHORTLIST = 8
"""So many of the nearest words are candidates for a target, and rivals of one another."""

SPARED_PROMPTS = 500
"""About so many prompts say what is to be spared; fewer words are said in more of them."""


@dataclass(frozen=True)
class Edited:
    """What came out of an edit."""

    map: TextMap
    choices: tuple[ErasedConcept, ...]
    rank: int
    """Of the solution; the map may have less."""
    kept: float
    """Share of the change's energy that the map's rank keeps."""


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
    cache: TensorCache | None = None,
    encoder: str = "",
    seed: int = 0,
) -> Edited:
    """Solve for the text map after which the concepts are read as their targets.

    Args:
        texts: the text encoder and its tokenizer.
        concepts: what is to be erased.
        recipe: how.
        targets: one for each concept, None for the prompt without it; chosen by the recipe if left
            out.
        vocabulary: words to be spared, and candidates for targets; the tokenizer's own, most
            frequent words if left out.
        keep: prompts to be spared.
        protect: prompts that are not to change at all.
        weights: path -> out x width, of the layers that read the text; few solvers ask for them.
        cache: where statistics of long lists of prompts are kept.
        encoder: a name for the text encoder's exact weights, for the cache.
        seed: of the shell.

    Raises:
        ErasureError: a target that is the concept itself, held prompts that leave no room, states
            that are not finite, an ill-conditioned system.
    """
    general = recipe.general or vocabulary is None
    own = Vocabulary(own_words(texts.tokenizer) if general else ())
    words = own if vocabulary is None else vocabulary
    listed = vocabulary.others(concepts) if vocabulary else ()
    known = tuple(dict.fromkeys((*listed, *own.others(concepts))))
    kind = concepts[0].kind
    G = reading_gram(weights) if weights and recipe.reads else None
    hold = _held(texts, recipe, protect)
    chosen = targets is None and recipe.choose != "given"
    # among all words there are, the nearest of a style describe how it looks: it is left out
    chosen &= vocabulary is not None or concepts[0].kind == "object"
    admissible = set(words.candidates(concepts)) if chosen else set[str]()
    several = concepts if known and (chosen or recipe.near) else ()
    apart = [distances(texts, concept, known) for concept in several]
    nearest = list(dict.fromkeys(word for row in apart for word in islice(row, recipe.near)))
    S = spared(
        texts,
        [*keep, *(_listed(listed, kind) if vocabulary else ())],
        prompts_naming(nearest, kind),
        general=general,
        cache=cache,
        encoder=encoder,
    )
    if chosen:
        choices = []
        for concept, row in zip(concepts, apart, strict=True):
            may = [word for word in row if word in admissible]
            if vocabulary is None:
                may = specific(texts, concept, may[: 4 * SHORTLIST])
            rivals = [word for word in row if vocabulary is None or word in listed]
            choices.append(
                _chosen(texts, concept, rivals[:SHORTLIST], may[:SHORTLIST], recipe, S, hold)
            )
    else:
        answers = targets or [None] * len(concepts)
        choices = [ErasedConcept.of(c, t) for c, t in zip(concepts, answers, strict=True)]
    E, V = rows(texts, concepts, [choice.target for choice in choices], recipe, seed=seed)
    if recipe.aim == "tensor":
        V = unshared(E, V, G)
    each = recipe.spare / len(concepts)
    problem = Problem.of(E, V, S, spare=each, ridge=recipe.ridge, hold=hold, G=G)
    rank = recipe.rank * len(concepts) * texts.several
    map, kept, whole = solved_within(recipe.solver, problem, rank)
    return Edited(map, tuple(choices), whole, kept)


def rows(
    texts: Texts,
    concepts: Sequence[Concept],
    answers: Sequence[str | None],
    recipe: Edit,
    *,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """What is to be read differently, and as what: the concepts' prompts beside their answers."""
    prompts, in_place = [], []
    for concept, answer in zip(concepts, answers, strict=True):
        for prompt in concept.example_prompts(recipe.prompts):
            prompts.append(prompt.text)
            in_place.append(prompt.about(answer))
    E, V = paired(texts, prompts, in_place, recipe.tokens)
    if not recipe.shell:
        return E, V
    own, theirs = paired(texts, prompts, in_place, "last")
    generator = torch.Generator().manual_seed(seed)
    around = shell(own, recipe.shell, cosine=recipe.cosine, generator=generator)
    return torch.cat((E, around)), torch.cat((V, theirs.repeat_interleave(recipe.shell, 0)))


def distances(texts: Texts, concept: Concept, words: Sequence[str]) -> dict[str, float]:
    """|e(k) - e(c)|^2 / |e("") - e(c)|^2 over the tokens of the same prompts, nearest word first.

    e("") is the prompt without the concept. Other names of the concept (below `SYNONYM`) are left
    out.
    """
    prompts = concept.example_prompts(max(1, min(4, SPARED_PROMPTS // max(1, len(words)))))
    E, answers = texts.encode([p.text for p in prompts]), (None, *words)
    squares: list[float] = []
    for start in range(0, len(answers), 16):
        chunk = answers[start : start + 16]
        other = texts.encode([p.about(answer) for answer in chunk for p in prompts])
        each = (other.unflatten(0, (len(chunk), -1)) - E).square().sum((1, 2, 3))
        squares += each.tolist()
    without, *apart = squares
    found = {word: square / without for word, square in zip(words, apart, strict=True)}
    return {w: d for w, d in sorted(found.items(), key=lambda entry: entry[1]) if d > SYNONYM}


def specific(texts: Texts, concept: Concept, words: Sequence[str]) -> list[str]:
    """Those with |e(k) - e("")|^2 >= `SPECIFIC` |e(c) - e("")|^2; all words if there are none.

    In the same prompts, e("") being the prompt without the concept: how much a word says at all.
    """
    prompts = concept.example_prompts(4)
    without = texts.encode([p.without() for p in prompts])
    named = [p.about(word) for word in (concept.name, *words) for p in prompts]
    states = texts.encode(named).unflatten(0, (-1, len(prompts)))
    says = (states - without).square().sum((1, 2, 3))
    least = SPECIFIC * says[0]
    left = [word for word, size in zip(words, says[1:], strict=True) if size >= least]
    return left or list(words)


def _chosen(
    texts: Texts,
    concept: Concept,
    near: Sequence[str],
    candidates: Sequence[str],
    recipe: Edit,
    S: Tensor,
    hold: Tensor | None,
) -> ErasedConcept:
    """Min over candidates of the mean over rivals j of  E |P e_j|^2 / E |e_j - e_null|^2

    Rivals are the nearest words, not all of which may be targets: AGE's idea (arXiv 2501.18950) by
    algebra.
    """
    if not candidates:
        raise ErasureError(
            f"Every word that may be a target is another name of '{concept.name}' to this text "
            f"encoder (distance below {SYNONYM}); add other words to the vocabulary."
        )
    rivals = list(dict.fromkeys([*candidates, *near]))
    if len(rivals) == 1:
        return ErasedConcept.of(concept, rivals[0], choice="least-damage")
    said_of = texts.encode(prompts_naming(rivals, concept.kind, 2)).double().cpu()
    null = texts.encode([""]).double().cpu()

    def size(x: Tensor) -> Tensor:
        """|x|^2 over the states of each rival."""
        return x.square().sum(1).view(len(rivals), -1).sum(1)

    apart_from_nothing = size((said_of - null).flatten(0, 1))
    brief = replace(recipe, prompts=min(recipe.prompts, 4))
    prompts = concept.example_prompts(brief.prompts)
    about = [p.about(word) for word in candidates for p in prompts]
    texts = texts.recalling([*(p.text for p in prompts), *about])
    pairs = [rows(texts, [concept], [word], brief) for word in candidates]
    E, V = pairs[0]
    first = Problem.of(E, V, S, spare=recipe.spare, ridge=recipe.ridge, hold=hold)
    N = Inverse.of(first.penalty / len(E), hold)  # what is spared, in means, is the same for all
    hurt = {}
    recognised = seen = torch.empty(0)
    for k, (word, (E, V)) in enumerate(zip(candidates, pairs, strict=True)):
        if not torch.equal(E, recognised):  # what is recognised is mostly the same
            recognised = E
            seen = reader_beside(E / len(E) ** 0.5, N) @ said_of.flatten(0, 1).T / len(E) ** 0.5
        D = V - E
        # |D^T A e|^2 = (A e)^T D D^T (A e): as many numbers as rows, not as the width
        moved = (seen * (D @ D.T @ seen)).sum(0).view(len(rivals), -1).sum(1) / apart_from_nothing
        moved[k] = 0
        hurt[word] = float(moved.sum() / (len(rivals) - 1))
    chosen = {"choice": "least-damage", "scores": hurt, "best": "lowest"}
    return ErasedConcept.of(concept, min(hurt, key=hurt.__getitem__), **chosen)


def _listed(words: Sequence[str], kind: Kind) -> list[str]:
    """The empty prompt, and every word in some prompts: the fewer words, the more."""
    count = max(1, min(PROMPTS_PER_WORD, SPARED_PROMPTS // max(1, len(words))))
    return ["", *prompts_naming(words, kind, count)]


def _held(texts: Texts, recipe: Edit, protect: Sequence[str]) -> Tensor | None:
    prompts = [*([""] if recipe.hold_null else []), *protect]
    return row_space(texts.encode(prompts)) if prompts else None
