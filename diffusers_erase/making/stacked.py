"""`stack()`: several erasers as one, by their exact sum or by Gram fusion."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from diffusers_erase.concepts import Vocabulary, prompts_naming
from diffusers_erase.editing.prior import gram, kept_moments
from diffusers_erase.editing.token_pairs import texts_of
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.stacking import KEEP, Rest, compact, fused, protected, scaled, summed
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.subspace import row_space
from diffusers_erase.models.model import Model


def stack(
    erasers: Sequence[str | Path | EraserAdapter],
    pipe: Any = None,
    *,
    fusion: Literal["sum", "gram"] = "sum",
    strengths: Sequence[float] | None = None,
    protect: Sequence[str] = (),
    vocabulary: Sequence[str] | Vocabulary = (),
    rest: Rest = "sum",
    spare: float = KEEP,
    rank: int | None = None,
) -> EraserAdapter:
    """One eraser in the place of several.

    As a sum it is exact, W + Σ_i s_i B_i A_i, by concatenation, in as few columns as that has. Gram
    fusion solves each A again so that it changes the other concepts least (`stacking.fused`).

    Args:
        erasers: folders, Hub ids or erasers, of one base.
        pipe: the pipeline whose text encoder is used; a sum without `protect` needs none.
        fusion: `sum` or `gram`.
        strengths: one for each eraser; 1 if omitted.
        protect: prompts that the stack is not to change at all.
        vocabulary: other concepts that fusion spares, beside the tokenizer's own words.
        rest: whether fusion does to them what the `sum` does, or `nothing`: see `fused`.
        spare: the weight κ of what is spared in a fusion.
        rank: largest rank of a layer; exact if omitted. `config.parameters["kept_energy"]` is what
            is kept of the change's energy.

    Raises:
        ErasureError: there are none, they do not fit together, or a pipeline is needed.
    """
    several = [
        one if isinstance(one, EraserAdapter) else EraserAdapter.from_pretrained(one)
        for one in erasers
    ]
    factors = [1.0] * len(several) if strengths is None else list(strengths)
    if len(factors) != len(several):
        raise ErasureError(f"{len(several)} erasers need {len(several)} strengths; got {factors}.")
    if fusion not in ("sum", "gram"):
        raise ErasureError(f"No fusion {fusion!r}. Known: sum, gram.")
    if pipe is None and (protect or fusion == "gram"):
        wanted = "`protect`" if protect else "Gram fusion"
        raise ErasureError(f"{wanted} asks the text encoder: pass the pipeline.")
    several = [scaled(eraser, s) for eraser, s in zip(several, factors, strict=True)]
    Q = row_space(Model.of(pipe).encode(["", *protect])) if protect or fusion == "gram" else None
    if fusion == "gram":
        texts = texts_of(pipe)
        second_moment = [gram(texts, eraser.config.example_prompts(16)) for eraser in several]
        erased = [erased.concept for eraser in several for erased in eraser.config.concepts]
        words = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(tuple(vocabulary))
        S = kept_moments(texts, prompts_naming(words.others(erased), "object"), general=True)
        together = fused(several, second_moment, S, rest=rest, protect=Q, keep=spare)
    else:
        together = summed(several)
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
