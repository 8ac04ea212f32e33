"""Mixtures of a concept with attributes, for debiasing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept, Prompt
from diffusers_erase.editing.texts import Texts
from diffusers_erase.errors import ErasureError


@dataclass(frozen=True)
class Blend:
    """Text states of a concept, and the differences that attributes make to them."""

    E: Tensor
    """States of the concept's prompts, n x width."""
    toward: Tensor
    """States of the same words with each attribute, minus E; attributes x n x width."""

    @classmethod
    def of(cls, texts: Texts, concept: Concept, attributes: Sequence[str], prompts: int) -> "Blend":
        """Encode the first prompts of the concept, without and with each attribute."""
        if len(attributes) < 2 or not all(a.replace("{}", "").strip() for a in attributes):
            raise ErasureError(
                "A concept is balanced between two attributes or more, such as 'red' or "
                f"'{{}} at night'; got {list(attributes)!r}."
            )
        examples = plain_prompts(concept, prompts)
        phrases = [a if "{}" in a else f"{a} {{}}" for a in attributes]
        with_attribute = [
            [prompt.about(phrase.replace("{}", concept.name)) for prompt in examples]
            for phrase in phrases
        ]
        plain = [prompt.text for prompt in examples]
        states = texts.encode(plain)

        def positions_in(prompt: str, other: str) -> dict[int, int]:
            """Position of each token of the prompt -> its position in the other."""
            found = texts.aligned(prompt, other, states.shape[1])
            return {i: j for each in found for i, j in each.pairs("all")}

        pairs = [
            [positions_in(p, q) for p, q in zip(plain, w, strict=True)] for w in with_attribute
        ]
        rows = [
            (k, i)
            for k in range(len(plain))
            for i in range(states.shape[1])
            if all(i in of_attribute[k] for of_attribute in pairs)
        ]
        E = torch.stack([states[k, i] for k, i in rows]).double().cpu()
        toward = []
        for prompts_with, places in zip(with_attribute, pairs, strict=True):
            other = texts.encode(prompts_with)
            V = torch.stack([other[k, places[k][i]] for k, i in rows]).double().cpu()
            toward.append(V - E)
        return cls(E, torch.stack(toward))

    def at(self, amounts: Sequence[float]) -> Tensor:
        """E + Σ_k a_k (E_k - E), n x width."""
        a = torch.tensor(amounts, dtype=self.E.dtype)
        return self.E + torch.einsum("k,knw->nw", a, self.toward)


def plain_prompts(concept: Concept, count: int) -> list[Prompt]:
    """The first `count` prompts that name the concept by its name, and not by a synonym."""
    return [p for p in concept.example_prompts() if p.name == concept.name][:count]
