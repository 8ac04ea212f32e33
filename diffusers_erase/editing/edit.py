"""`edit()` solves for the text map that erases concepts, without evaluating the UNet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from diffusers_erase.concepts import PROMPTS_PER_WORD, Concept, Kind, Vocabulary, prompts_naming
from diffusers_erase.editing.prior import kept_moments, own_words
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.editing.solvers import Problem, solved_within, weights_gram
from diffusers_erase.editing.solving import ridge_coefficients_given
from diffusers_erase.editing.token_pairs import Texts, paired_states, shell, without_shared_part
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.inverse import Inverse
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.storage.tensor_cache import TensorCache


SYNONYM = 0.05
"""A word nearer to the concept than this (see `distances`) is taken for another name of it."""

SPECIFIC = 0.7
"""A word of the tokenizer's own whose states differ from the prompt without it by less than this
share of the concept's difference is general (`vehicle`, `animal`): it may be drawn as the
concept."""

SHORTLIST = 8
"""Number of nearest words that are candidates for a target, and rivals of one another."""

KEPT_PROMPTS = 500
"""Approximate number of prompts about kept words; fewer words are named in more of them."""


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
    cache: TensorCache | None = None,
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
        cache: where statistics of long lists of prompts are stored.
        encoder: a name for the text encoder's exact weights, for the cache.
        seed: of the shell.

    Raises:
        ErasureError: a target that is the concept itself, protected prompts that span all text,
            states that are not finite, an ill-conditioned system.
    """
    general = recipe.general or vocabulary is None
    own = Vocabulary(own_words(texts.tokenizer) if general else ())
    words = own if vocabulary is None else vocabulary
    listed = vocabulary.others(concepts) if vocabulary else ()
    known = tuple(dict.fromkeys((*listed, *own.others(concepts))))
    kind = concepts[0].kind
    G = weights_gram(weights) if weights and recipe.reads else None
    unchanged = [*([""] if recipe.protect_null else []), *protect]
    Q = row_space(texts.encode(unchanged)) if unchanged else None
    chosen = targets is None and recipe.choose != "given"
    # among the tokenizer's words, those nearest to a style describe it: it is left out instead
    chosen &= vocabulary is not None or concepts[0].kind == "object"
    admissible = set(words.candidates(concepts)) if chosen else set[str]()
    measured = concepts if known and (chosen or recipe.near) else ()
    ranked = [distances(texts, concept, known) for concept in measured]
    nearest = list(dict.fromkeys(word for row in ranked for word in islice(row, recipe.near)))
    S = kept_moments(
        texts,
        [*keep, *(_listed(listed, kind) if vocabulary else ())],
        prompts_naming(nearest, kind),
        general=general,
        cache=cache,
        encoder=encoder,
    )
    if chosen:
        choices = []
        for concept, row in zip(concepts, ranked, strict=True):
            candidates = [word for word in row if word in admissible]
            if vocabulary is None:
                candidates = specific(texts, concept, candidates[: 4 * SHORTLIST])
            near = {word: row[word] for word in candidates[:SHORTLIST]}
            rivals = [word for word in row if vocabulary is None or word in listed]
            choices.append(_choice(texts, concept, near, rivals[:SHORTLIST], recipe, S, Q))
    else:
        given = targets or [None] * len(concepts)
        choices = [ErasedConcept.of(c, t) for c, t in zip(concepts, given, strict=True)]
    answers = [choice.target for choice in choices]
    E, V = states_and_targets(texts, concepts, answers, recipe, seed=seed)
    if recipe.aim == "tensor":
        V = without_shared_part(E, V, G)
    each = recipe.keep_weight / len(concepts)
    problem = Problem.of(E, V, S, keep_weight=each, ridge=recipe.ridge, protect=Q, G=G)
    rank = recipe.rank * len(concepts) * texts.count
    map, kept, whole = solved_within(recipe.solver, problem, rank)
    return Edited(map, tuple(choices), whole, kept)


def states_and_targets(
    texts: Texts,
    concepts: Sequence[Concept],
    targets: Sequence[str | None],
    recipe: Edit,
    *,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Text states E of the concepts' prompts, and what replaces them, V: two n x width."""
    prompts, about = [], []
    for concept, target in zip(concepts, targets, strict=True):
        for prompt in concept.example_prompts(recipe.prompts):
            prompts.append(prompt.text)
            about.append(prompt.about(target))
    E, V = paired_states(texts, prompts, about, recipe.tokens)
    if not recipe.shell:
        return E, V
    own, theirs = paired_states(texts, prompts, about, "last")
    generator = torch.Generator().manual_seed(seed)
    around = shell(own, recipe.shell, cosine=recipe.cosine, generator=generator)
    return torch.cat((E, around)), torch.cat((V, theirs.repeat_interleave(recipe.shell, 0)))


def distances(texts: Texts, concept: Concept, words: Sequence[str]) -> dict[str, float]:
    """|e(k) - e(c)|^2 / |e("") - e(c)|^2 over the tokens of the same prompts, nearest word first.

    e("") is the prompt without the concept. Other names of the concept (below `SYNONYM`) are left
    out.
    """
    prompts = concept.example_prompts(max(1, min(4, KEPT_PROMPTS // max(1, len(words)))))
    E, targets = texts.encode([p.text for p in prompts]), (None, *words)
    squares: list[float] = []
    for start in range(0, len(targets), 16):
        chunk = targets[start : start + 16]
        other = texts.encode([p.about(target) for target in chunk for p in prompts])
        each = (other.unflatten(0, (len(chunk), -1)) - E).square().sum((1, 2, 3))
        squares += each.tolist()
    without, *apart = squares
    found = {word: square / without for word, square in zip(words, apart, strict=True)}
    return {w: d for w, d in sorted(found.items(), key=lambda entry: entry[1]) if d > SYNONYM}


def specific(texts: Texts, concept: Concept, words: Sequence[str]) -> list[str]:
    """The words k with |e(k) - e("")|^2 >= `SPECIFIC` |e(c) - e("")|^2; all words if none has.

    In the same prompts, e("") being the prompt without the concept.
    """
    prompts = concept.example_prompts(4)
    without = texts.encode([p.without() for p in prompts])
    named = [p.about(word) for word in (concept.name, *words) for p in prompts]
    states = texts.encode(named).unflatten(0, (-1, len(prompts)))
    says = (states - without).square().sum((1, 2, 3))
    least = SPECIFIC * says[0]
    left = [word for word, size in zip(words, says[1:], strict=True) if size >= least]
    return left or list(words)


def _choice(
    texts: Texts,
    concept: Concept,
    candidates: Mapping[str, float],
    rivals: Sequence[str],
    recipe: Edit,
    S: Tensor,
    Q: Tensor | None,
) -> ErasedConcept:
    """The concept with its target among the candidates, whose distances are given."""
    if not candidates:
        raise ErasureError(
            f"Every word that may be a target is another name of '{concept.name}' to this "
            f"text encoder (distance below {SYNONYM}); add other words to the vocabulary."
        )
    if recipe.choose == "nearest":
        how = {"choice": "nearest", "scores": candidates, "best": "lowest"}
        return ErasedConcept.of(concept, next(iter(candidates)), **how)
    return _least_damage(texts, concept, rivals, list(candidates), recipe, S, Q)


def _least_damage(
    texts: Texts,
    concept: Concept,
    near: Sequence[str],
    candidates: Sequence[str],
    recipe: Edit,
    S: Tensor,
    Q: Tensor | None,
) -> ErasedConcept:
    """Min over candidates of the mean over rivals j of  E |P e_j|^2 / E |e_j - e_null|^2

    Rivals are the nearest words, not all of which may be targets: AGE's idea (arXiv 2501.18950) in
    closed form.
    """
    rivals = list(dict.fromkeys([*candidates, *near]))
    if len(rivals) == 1:
        return ErasedConcept.of(concept, rivals[0], choice="least-damage")
    of_rivals = texts.encode(prompts_naming(rivals, concept.kind, 2)).double().cpu()
    null = texts.encode([""]).double().cpu()

    def size(x: Tensor) -> Tensor:
        """|x|^2 over the states of each rival."""
        return x.square().sum(1).view(len(rivals), -1).sum(1)

    difference = size((of_rivals - null).flatten(0, 1))
    brief = replace(recipe, prompts=min(recipe.prompts, 4))
    prompts = concept.example_prompts(brief.prompts)
    about = [p.about(word) for word in candidates for p in prompts]
    texts = texts.recalling([*(p.text for p in prompts), *about])
    pairs = [states_and_targets(texts, [concept], [word], brief) for word in candidates]
    E, V = pairs[0]
    first = Problem.of(E, V, S, keep_weight=recipe.keep_weight, ridge=recipe.ridge, protect=Q)
    N = Inverse.of(first.penalty / len(E), Q)  # the penalty, in means, is the same for all
    damage = {}
    factorised = seen = torch.empty(0)
    for k, (word, (E, V)) in enumerate(zip(candidates, pairs, strict=True)):
        if not torch.equal(E, factorised):  # most targets change the same states
            factorised = E
            seen = (
                ridge_coefficients_given(E / len(E) ** 0.5, N)
                @ of_rivals.flatten(0, 1).T
                / len(E) ** 0.5
            )
        D = V - E
        # |D^T A e|^2 = (A e)^T D D^T (A e): as many numbers as rows, not as the width
        moved = (seen * (D @ D.T @ seen)).sum(0).view(len(rivals), -1).sum(1) / difference
        moved[k] = 0
        damage[word] = float(moved.sum() / (len(rivals) - 1))
    chosen = {"choice": "least-damage", "scores": damage, "best": "lowest"}
    return ErasedConcept.of(concept, min(damage, key=damage.__getitem__), **chosen)


def _listed(words: Sequence[str], kind: Kind) -> list[str]:
    """The empty prompt and prompts that name each word; the fewer words, the more prompts each."""
    count = max(1, min(PROMPTS_PER_WORD, KEPT_PROMPTS // max(1, len(words))))
    return ["", *prompts_naming(words, kind, count)]
