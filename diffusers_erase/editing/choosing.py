"""Targets of an edit: the distances of words, and the word that damages others least."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Prompt, kind_of
from diffusers_erase.concepts.candidates import admissible, comparable, kind_beside
from diffusers_erase.concepts.prompts import spread
from diffusers_erase.concepts.words import words_of
from diffusers_erase.editing.keeping import KEPT_PROMPTS
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.editing.solvers import Problem
from diffusers_erase.editing.solving import ridge_coefficients_given
from diffusers_erase.editing.states import states_and_targets
from diffusers_erase.editing.texts import Texts
from diffusers_erase.eraser.config import ErasedConcept
from diffusers_erase.linalg.inverse import Inverse
from diffusers_erase.models.text_states import unknown_words


SPECIFIC, TYPICAL = 0.6, 36
"""A word whose states differ from the prompt without it by less than this share of the median of so
many things is general (`vehicle`, `animal`): it may be drawn as one of many things."""

MEMBERS = 3
"""A name with so many synonyms lists the things that it stands for."""

COLOURED = "a photo of a red {}"
"""The template in which that is measured: behind a colour words differ most in it."""

SHORTLIST = 8
"""Number of nearest words that are candidates for a target, and rivals of one another."""


def distances(
    texts: Texts,
    concepts: Sequence[Concept],
    words: Sequence[Sequence[str]],
    most: int | None = None,
) -> list[dict[str, float]]:
    """Min over names c of |e(k) - e(c)|^2 / |e("") - e(c)|^2 for the words k of each concept.

    Over the tokens of the same prompts, `most` of them, nearest word first; e("") is the prompt
    without the concept. The states of a word are shared by concepts with the same prompts.
    """
    found: list[dict[str, float]] = [{} for _ in concepts]
    same: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for k, concept in enumerate(concepts):
        same.setdefault((concept.kind, concept.templates), []).append(k)
    for (_, templates), owners in same.items():
        asked = list(dict.fromkeys(word for k in owners for word in words[k]))
        count = max(1, min(most or 4, KEPT_PROMPTS // max(1, len(asked))))
        used = spread(templates, count)
        prompts = [Prompt(t, concepts[owners[0]].name, concepts[owners[0]].kind) for t in used]
        names = [(k, name) for k in owners for name in concepts[k].names]
        rows = _squares(texts, prompts, [name for _, name in names], (None, *asked))
        places = {word: i for i, word in enumerate(asked, 1)}
        for (k, _), row in zip(names, rows.T.tolist(), strict=True):
            near = {w: row[places[w]] / row[0] for w in words[k]}
            found[k] = {w: min(d, found[k].get(w, d)) for w, d in near.items()}
    return [dict(sorted(row.items(), key=lambda entry: entry[1])) for row in found]


def _squares(
    texts: Texts, prompts: Sequence[Prompt], names: Sequence[str], words: Sequence[str | None]
) -> Tensor:
    """Σ |e(k) - e(c)|^2 over the prompts of each word k and each name c, words x names."""
    total = torch.zeros(len(words), len(names), dtype=torch.float64)
    for prompt in prompts:
        length = texts.compared_length([prompt.about(w) for w in (*names, *words)])
        E = texts.compared([prompt.about(name) for name in names], length).flatten(1).double()
        mean = E.mean(0)
        E -= mean
        sizes = E.square().sum(1)
        for start in range(0, len(words), 64):
            chunk = [prompt.about(word) for word in words[start : start + 64]]
            states = texts.compared(chunk, length).flatten(1).double() - mean
            squares = states.square().sum(1)[:, None] + sizes - 2 * states @ E.T
            total[start : start + 64] += squares.clamp(min=0)
    return total


def specific(
    texts: Texts, concept: Concept, words: Sequence[str], things: Sequence[str]
) -> list[str]:
    """The words k with |e(k) - e("")|^2 >= `SPECIFIC` median over things j of |e(j) - e("")|^2

    In one prompt, e("") being that without a word; the things are a sample of `TYPICAL` of these.
    Beside a compound, of the heads of the words. Attributes and places are never general.
    """
    if concept.kind == "compound":
        attribute, head = concept.parts
        heads = {word.removeprefix(attribute).strip(): word for word in words}
        others = [word.removeprefix(attribute).strip() for word in things]
        return [heads[h] for h in specific(texts, Concept(head, "object"), list(heads), others)]
    if concept.kind != "object":
        return list(words)
    prompt = Prompt(COLOURED, concept.name)
    sample = list(dict.fromkeys(spread(things, TYPICAL)))
    about = [prompt.about(word) for word in (None, *words, *sample)]
    states = texts.encode(about).float()  # cut prompts do not tell general words
    says = (states[1:] - states[0]).square().sum((1, 2))
    least = SPECIFIC * says[len(words) :].median()
    return [word for word, size in zip(words, says, strict=False) if size >= least]


def things_among(words: Sequence[str]) -> list[str]:
    """The words that name a thing alone."""
    alike = comparable(Concept("thing", "object"), words)
    return [word for word in alike if kind_of(word) == "object"]


def general_names(texts: Texts, concept: Concept, things: Sequence[str]) -> list[str]:
    """The names of an object that are words for many things; a compound's, if its head is one.

    Compared with things, the tokenizer's own words (see `specific`). Names that the tokenizer does
    not know as words are not general, nor is a concept with `MEMBERS` synonyms.
    """
    if len({words_of(name) for name in concept.names}) > MEMBERS:
        return []
    if concept.kind == "compound":
        head = Concept(concept.parts[-1], "object")
        return [concept.name] if general_names(texts, head, things) else []
    if concept.kind != "object" or not things:
        return []
    names = [name for name in concept.names if not unknown_words(texts.tokenizer, name)]
    found = {*specific(texts, concept, names, things)}
    return [name for name in names if name not in found]


def _specific_ones(texts: Texts, concept: Concept, candidates: Sequence[str]) -> list[str]:
    """The nearest specific candidates, `SHORTLIST` or more of the nearest four times as many."""
    found: list[str] = []
    for start in range(0, 4 * SHORTLIST, 2 * SHORTLIST):
        chunk = candidates[start : start + 2 * SHORTLIST]
        if len(found) < SHORTLIST and chunk:
            found += specific(texts, concept, chunk, candidates)
    return found


def choose(
    texts: Texts,
    concepts: Sequence[Concept],
    proposals: Sequence[Sequence[str]],
    measured: Sequence[Mapping[str, float]],
    rivals: Sequence[Sequence[str]],
    recipe: Edit,
    S: Tensor,
    Q: Tensor | None,
    *,
    general: bool,
    wide: Collection[str] = (),
) -> list[ErasedConcept]:
    """The concepts with their targets.

    Args:
        texts: the text encoder and its tokenizer.
        concepts: what is to be erased.
        proposals: for each concept, the words that may replace it.
        measured: for each concept, words with their distances (`distances`).
        rivals: for each concept, near words that are to be damaged least.
        recipe: the numbers and choices of the edit.
        S: second moments of what is kept.
        Q: directions that do not change.
        general: the words are the tokenizer's own, some of which mean many things.
        wide: names of concepts that mean many things themselves.
    """
    choices, nearest = [], dict[str, float]()
    for row in measured:
        nearest.update((w, d) for w, d in row.items() if d < nearest.get(w, float("inf")))
    for k, concept in enumerate(concepts):
        candidates = list(admissible(0, proposals[k], (measured[k], nearest)))
        if concept.name in wide:  # its nearest words are among the things it stands for
            candidates = candidates[len(candidates) // 2 :]
        if general:
            candidates = _specific_ones(texts, concept, candidates) or candidates
        near = {word: measured[k][word] for word in candidates[:SHORTLIST]}
        if not near:
            choices.append(ErasedConcept.left_out(concept))
        elif recipe.choose == "nearest":
            how = {"choice": "nearest", "scores": near, "best": "lowest"}
            choices.append(ErasedConcept.of(concept, next(iter(near)), **how))
        else:
            choices.append(_least_damage(texts, concept, rivals[k], list(near), recipe, S, Q))
    return choices


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
    named = [Concept(word, kind_beside(word, concept.kind)) for word in rivals]
    states, sizes = [], torch.zeros(len(rivals))
    for each in zip(*(c.example_prompts(2) for c in named), strict=True):
        about = [prompt.text for prompt in each]
        length = texts.compared_length(about)
        states.append(texts.compared(about, length))
        sizes += (states[-1] - texts.compared([""], length)).square().sum((1, 2))
    of_rivals, difference = torch.cat(states, 1).double(), sizes.double()
    brief = min(recipe.prompts, 4)
    pairs = [
        states_and_targets(texts, [concept], [word], recipe, brief=brief) for word in candidates
    ]
    E, V, count = pairs[0].E, pairs[0].V, pairs[0].count
    first = Problem.of(
        E, V, S, keep_weight=recipe.keep_weight, ridge=recipe.ridge, protect=Q, count=count
    )
    N = Inverse.of(first.penalty / count, Q)  # the penalty, in means, is the same for all
    damage = {}
    factorised = seen = torch.empty(0)
    for k, (word, pair) in enumerate(zip(candidates, pairs, strict=True)):
        E, root = pair.E, pair.count**0.5
        if not torch.equal(E, factorised):  # most targets change the same states
            factorised = E
            seen = ridge_coefficients_given(E / root, N) @ of_rivals.flatten(0, 1).T / root
        D = pair.V - E
        # |D^T A e|^2 = (A e)^T D D^T (A e): as many numbers as rows, not as the width
        moved = (seen * (D @ D.T @ seen)).sum(0).view(len(rivals), -1).sum(1) / difference
        moved[k] = 0
        damage[word] = float(moved.sum() / (len(rivals) - 1))
    chosen = {"choice": "least-damage", "scores": damage, "best": "lowest"}
    return ErasedConcept.of(concept, min(damage, key=damage.__getitem__), **chosen)
