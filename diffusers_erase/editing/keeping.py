"""Second moments of what an eraser keeps: listed words, the nearest words, and general prompts."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from diffusers_erase.concepts import PROMPTS_PER_WORD, TEMPLATES, Concept, Kind
from diffusers_erase.concepts.candidates import kept_prompts, kind_beside, parts_kept
from diffusers_erase.editing.naming import Named
from diffusers_erase.editing.prior import kept_moments
from diffusers_erase.editing.texts import Texts
from diffusers_erase.storage.tensor_cache import KeptTensors, TensorCache


KEPT_PROMPTS = 500
"""Approximate number of prompts about kept words; fewer words are named in more of them."""


def kept_beside(
    texts: Texts,
    concepts: Sequence[Concept],
    listed: Sequence[str],
    measured: Sequence[Mapping[str, float]],
    near: int,
    *,
    keep: Sequence[str] = (),
    general: Tensor | None = None,
    cache: TensorCache | KeptTensors | None = None,
    encoder: str = "",
) -> Tensor:
    """Second moments of what is kept while these concepts are erased (see `kept_moments`).

    No prompt that names a concept is kept, and each word is named in prompts of its own kind. The
    neighbours of a compound, such as its head alone, are among the nearest.

    Args:
        texts: the text encoder and its tokenizer.
        concepts: what is erased.
        listed: words of the vocabulary that are kept.
        measured: for each concept, words with their distances, nearest first.
        near: number of nearest words of each concept that are kept with more weight.
        keep: prompts that are kept beside the listed words.
        general: second moments of general prompts, if these are kept too.
        cache: where statistics of long lists of prompts are stored.
        encoder: a name for the text encoder's exact weights, for the cache.
    """
    rows = [list(row)[:near] for row in measured]
    nearest = [
        (word, kind_beside(word, concept.kind))
        for concept, row in zip(concepts, rows, strict=True)
        for word in row
    ]
    count = max(1, min(PROMPTS_PER_WORD, KEPT_PROMPTS // max(1, len(listed))))
    named = Named(concepts)
    return kept_moments(
        texts,
        [
            *keep,
            *([""] if listed else []),
            *_kept(_of_kinds(listed, concepts, measured), named, count),
        ],
        _kept(sorted(set(nearest)), named),
        beside=sorted(parts_kept(concepts)),
        general=general,
        erased=concepts,
        cache=cache,
        encoder=encoder,
    )


def _kept(
    words: Sequence[tuple[str, Kind]], erased: Named, count: int = PROMPTS_PER_WORD
) -> list[str]:
    """`kept_prompts`, with the concepts alone that a word or a template of its kind may name."""
    return [
        prompt
        for word, kind in words
        for prompt in kept_prompts(
            [(word, kind)], erased.near(" ".join((word, *TEMPLATES[kind]))), count
        )
    ]


def _of_kinds(
    words: Sequence[str], concepts: Sequence[Concept], measured: Sequence[Mapping[str, float]]
) -> list[tuple[str, Kind]]:
    """Each word with its kind: where it has none of its own, that of the concept nearest to it."""
    kinds = {concept.kind for concept in concepts}
    unmeasured: Kind = kinds.pop() if len(kinds) == 1 else "object"
    found: list[tuple[str, Kind]] = []
    for word in words:
        rows = zip(concepts, measured, strict=False)
        near = [(row[word], concept.kind) for concept, row in rows if word in row]
        beside: Kind = min(near)[1] if near else unmeasured
        found.append((word, kind_beside(word, beside)))
    return found
