"""Text states of the erased concepts' prompts, and those that replace them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.concepts.examples import prompts_to_erase
from diffusers_erase.editing.recipes import Edit
from diffusers_erase.editing.token_pairs import Texts, paired_states, shell


def states_and_targets(
    texts: Texts,
    concepts: Sequence[Concept],
    targets: Sequence[str | None],
    recipe: Edit,
    *,
    brief: int = 0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Text states E of the concepts' prompts, and what replaces them, V: two n x width.

    With `brief`, of so many prompts of each concept.
    """
    prompts, about = [], []
    for concept, target in zip(concepts, targets, strict=True):
        every = prompts_to_erase(concept, recipe.prompts, concepts)
        for prompt in concept.example_prompts(brief) if brief else every:
            prompts.append(prompt.text)
            about.append(prompt.about(target))
    E, V = paired_states(texts, prompts, about, recipe.tokens)
    if not recipe.shell:
        return E, V
    own, theirs = paired_states(texts, prompts, about, "last")
    generator = torch.Generator().manual_seed(seed)
    around = shell(own, recipe.shell, cosine=recipe.cosine, generator=generator)
    return torch.cat((E, around)), torch.cat((V, theirs.repeat_interleave(recipe.shell, 0)))
