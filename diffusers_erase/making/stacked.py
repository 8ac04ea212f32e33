"""`stack()` combines erasers into one, by their exact sum or by Gram fusion."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from diffusers_erase.concepts import Vocabulary, prompts_naming, scenes
from diffusers_erase.editing.own_prompts import OwnStatistics, own_words
from diffusers_erase.editing.prior import gram, kept_moments
from diffusers_erase.editing.texts import Texts, texts_of
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.stacking import KEEP, Rest, compact, fused, protected, scaled, summed
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.models.architectures import reads_text
from diffusers_erase.models.model import Model


SCENES = 500
"""Number of the tokenizer's own words up to which each stands in two scenes."""


def stack(
    erasers: Sequence[str | Path | EraserAdapter],
    pipe: Any = None,
    *,
    fusion: Literal["sum", "gram"] = "sum",
    strengths: Sequence[float] | None = None,
    protect: Sequence[str] = (),
    vocabulary: Sequence[str] | Vocabulary = (),
    rest: Rest = "nothing",
    keep_weight: float = KEEP,
    rank: int | None = None,
) -> EraserAdapter:
    """Combine erasers into one.

    As a sum it is exact, W + Σ_i s_i B_i A_i, by concatenation, in as few columns as that has. Gram
    fusion solves each A again so that it changes the other concepts least (`stacking.fused`).

    Args:
        erasers: folders, Hub ids or erasers, of one base.
        pipe: the pipeline whose text encoder is used; a sum without `protect` needs none.
        fusion: `sum` or `gram`.
        strengths: one for each eraser; 1 if omitted.
        protect: prompts that the stack is not to change at all (in float32).
        vocabulary: other concepts that fusion keeps, beside the tokenizer's own words; both alone
            and two in one picture.
        rest: the effect of fusion on these: `nothing`, or that of the `sum`; see `fused`.
        keep_weight: the weight κ of what fusion keeps.
        rank: largest rank of a layer; exact if omitted. `config.parameters["kept_energy"]` is what
            is kept of the change's energy.

    Raises:
        ErasureError: there are none, they do not fit together, a pipeline is needed, or prompts
            cannot be protected from an eraser, which changes more than keys and values.
    """
    loaded = [
        e if isinstance(e, EraserAdapter) else EraserAdapter.from_pretrained(e) for e in erasers
    ]
    factors = [1.0] * len(loaded) if strengths is None else list(strengths)
    if len(factors) != len(loaded):
        raise ErasureError(f"{len(loaded)} erasers need {len(loaded)} strengths; got {factors}.")
    if fusion not in ("sum", "gram"):
        raise ErasureError(f"No fusion {fusion!r}. Known: sum, gram.")
    if pipe is None and (protect or fusion == "gram"):
        wanted = "`protect`" if protect else "Gram fusion"
        raise ErasureError(f"{wanted} needs the text encoder: pass the pipeline.")
    if protect:
        _require_text_layers(loaded, Model.of(pipe))
    parts = [scaled(eraser, s) for eraser, s in zip(loaded, factors, strict=True)]
    Q = row_space(Model.of(pipe).encode(["", *protect])) if protect or fusion == "gram" else None
    if fusion == "gram":
        texts = texts_of(pipe)
        second_moment = [gram(texts, eraser.config.example_prompts(16)) for eraser in parts]
        erased = [erased.concept for eraser in parts for erased in eraser.config.concepts]
        words = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(tuple(vocabulary))
        S = _kept(
            texts, words.others(erased), Vocabulary(own_words(texts.tokenizer)).others(erased)
        )
        together = fused(parts, second_moment, S, rest=rest, protect=Q, keep=keep_weight)
    else:
        together = summed(parts)
    if protect and Q is not None:
        together = protected(together, Q)
    together, kept = compact(together, rank)
    parameters = {
        **together.config.parameters,
        "fusion": fusion,
        "strengths": factors,
        "protected_prompts": list(protect),
        "kept_energy": kept,
    }
    return replace(together, config=replace(together.config, parameters=parameters))


def _require_text_layers(erasers: Sequence[EraserAdapter], model: Model) -> None:
    for eraser in erasers:
        others = [path for path in eraser.paths(model.denoiser) if not reads_text(path)]
        if others:
            raise ErasureError(
                f"The eraser of '{eraser.config.title}' changes layers that do not read the text "
                f"('{others[0]}' and {len(others) - 1} others), from which no prompt can be "
                "protected; leave `protect` out, or the eraser."
            )


def _kept(texts: Texts, listed: Sequence[str], own: Sequence[str]) -> Tensor:
    """S of fusion: the second moment of prompts that name listed and own words, half of it scenes.

    States of two things in one picture are unlike those of one. An eraser that was told of single
    things moves them several times as much, and in a sum of ten that adds up.
    """
    general = OwnStatistics.of(texts).without(texts).gram
    alone = kept_moments(texts, prompts_naming(listed, "object"), general=general)
    together = [*scenes(listed, count=4), *scenes(own, count=2 if len(own) <= SCENES else 1)]
    return (alone + gram(texts, together)) / 2 if together else alone
