"""Text states of the erased concepts' prompts, and those that replace them."""

from collections.abc import Sequence

import torch

from diffusers_erase.concepts import Concept
from diffusers_erase.concepts.examples import prompts_to_erase
from diffusers_erase.concepts.prompts import SUBJECTS
from diffusers_erase.editing.naming import Named
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.editing.solvers import Replace
from diffusers_erase.editing.texts import Texts
from diffusers_erase.editing.token_pairs import Rows, paired_states
from diffusers_erase.linalg.shell import shell


WHOLE = 3
"""Number of each concept's prompts whose padding is replaced, for that of all."""


def states_and_targets(
    texts: Texts,
    concepts: Sequence[Concept],
    targets: Sequence[str | None],
    recipe: Edit,
    *,
    brief: int = 0,
    seed: int = 0,
) -> Rows:
    """Text states E of the concepts' prompts, and what replaces them, V.

    With `brief`, of so many prompts of each concept, and of their padding the first only.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = (0 if brief else WHOLE) if isinstance(recipe.solver, Replace) else None

    overlapping = Named(concepts).near(" ".join(SUBJECTS))  # few of a thousand do

    def rows(concept: Concept, target: str | None) -> Rows:
        every = prompts_to_erase(concept, recipe.prompts, overlapping)
        asked = concept.example_prompts(brief) if brief else every
        prompts = [prompt.text for prompt in asked]
        about = [prompt.about(target) for prompt in asked]
        found = paired_states(texts, prompts, about, recipe.tokens, whole)
        if not recipe.shell:
            return found
        own = paired_states(texts, prompts, about, "last")
        around = shell(own.E, recipe.shell, cosine=recipe.cosine, generator=generator)
        near = Rows(around, own.V.repeat_interleave(recipe.shell, 0), len(around))
        return Rows.joined([found, near])

    return Rows.joined(rows(c, t) for c, t in zip(concepts, targets, strict=True))
