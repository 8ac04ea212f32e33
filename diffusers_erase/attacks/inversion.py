"""Concept inversion: a new word, learnt from pictures, by which the model draws the concept."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from diffusers_erase.attacks.attack_run import GIVEN, another, drawn_from, originals, recorded
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt, concept_of
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.denoising_loss import (
    denoising_loss,
    latents_of,
)
from diffusers_erase.models.embedding_hooks import looking_up
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import whole_words
from diffusers_erase.storage.tensor_cache import digest


@dataclass(frozen=True)
class Word:
    """A word that no tokenizer has, by what the text encoder would look up for it."""

    vector: Tensor
    """Its input embedding, width."""
    losses: tuple[float, ...]
    evaluations: int
    """What it cost: a forward of the denoiser counts one, a backward two."""

    @torch.no_grad()
    def states(self, pipe: Any, templates: Sequence[str]) -> Tensor:
        """Text states of prompts with the word for `{}`, P x tokens x width: `prompt_embeds`."""
        return _said(pipe, templates, self.vector, _stand_in(pipe.tokenizer, templates))


@dataclass(frozen=True)
class Inversion:
    """One word for all prompts, learnt from what the base draws for them, in the concept's place.

    Circumventing Concept Erasure (arXiv 2308.01508), by `invert`. Its controls: a model that never
    knew the concept, and one that lost nothing; inversion draws much that no model ever lost.
    """

    concept: Concept | None = None
    """Its names are replaced by the word; the first label that is wanted, if omitted."""
    steps: int = 300
    """Updates; 5,000 with 16 pictures each as released."""
    batch: int = 8
    pictures: int = 16
    """Of the base, to learn from; prompts take turns."""
    learning_rate: float = 0.05
    seed: int = 0

    name: ClassVar[str] = "inversion"
    access: ClassVar[Access] = "white box"

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.pictures) < 1:
            raise ErasureError(
                "Concept inversion takes 1 update, latent each and picture or more; got "
                f"{self.steps}, {self.batch} and {self.pictures}."
            )

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture a prompt, with the word in it."""
        sampler.model.noise_predictor()
        with recorded(sampler, asked) as record:
            concept = concept_of(asked, self.concept)
            templates = [template_of(a.prompt, concept) for a in asked]
            given = originals(sampler, self._shown(asked))
            with record.paid_by(record.rows):
                word = invert(
                    sampler.pipe,
                    given,
                    templates,
                    steps=self.steps,
                    batch=self.batch,
                    learning_rate=self.learning_rate,
                    seed=self.seed,
                    precision=sampler.sampling.autocast,
                    paired=True,
                )
            states = word.states(sampler.pipe, templates)
            draw = partial(drawn_from, sampler, states, [a.seed for a in asked])
            for row, hit in enumerate(record.tried(record.rows, draw)):
                record.artefacts[row] = f"embedding {digest(word.vector)}" if hit else ""
            return record.attempts()

    def _shown(self, asked: Sequence[PromptCase]) -> list[PromptCase]:
        """What the base draws to be learnt from; with other seeds than those that are asked for."""
        turns = (asked[i % len(asked)] for i in range(self.pictures))
        return [
            replace(a, seed=another(a.seed + self.seed + i, GIVEN)) for i, a in enumerate(turns)
        ]


def template_of(prompt: str, concept: Concept) -> str:
    """The prompt with `{}` for the concept's first name in it, or after it where it has none."""
    first, *rest = concept.replaced(prompt, "{}").split("{}")
    said = " ".join(f"{first}{{}}{''.join(rest)}".split())
    return said if rest else f"{prompt} {{}}".strip()


def invert(
    pipe: Any,
    pictures: Sequence[Image.Image],
    templates: Sequence[str],
    *,
    steps: int = 300,
    batch: int = 8,
    learning_rate: float = 0.05,
    seed: int = 0,
    precision: torch.dtype | None = None,
    paired: bool = False,
) -> Word:
    """argmin_v  E | eps(z_t, t, c(v)) - eps |^2,   z_t = √ᾱ_t x_0 + √(1-ᾱ_t) eps

    Circumventing Concept Erasure (arXiv 2308.01508) by textual inversion (arXiv 2208.01618): the
    model is left alone with its erasers on, and one embedding is learnt by which it denoises
    pictures of the concept. A model that never knew the concept can be taught some likeness of it
    too: hold what comes back against a control.

    Args:
        pipe: a Stable Diffusion pipeline with whatever erasers are to be tried.
        pictures: of the concept, in the size that the model draws.
        templates: prompts about the concept, `{}` for its name; they take turns.
        steps: updates of Adam.
        batch: latents an update.
        learning_rate: in units of the spread of the text encoder's own embeddings.
        seed: of noise, times and pictures.
        precision: autocast's, if any.
        paired: whether the pictures show the templates, in turns; else any is said of any.

    Raises:
        ErasureError: no picture, a template without `{}`, or another kind of pipeline.
    """
    if not pictures or not templates:
        raise ErasureError("Concept inversion learns from pictures and prompts; name some of each.")
    for template in templates:
        if template.count("{}") != 1:
            raise ErasureError(f"The prompt {template!r} needs one '{{}}', for the word.")
    denoiser = Model.of(pipe).noise_predictor(precision=precision)
    clean = latents_of(pipe, pictures)
    known = pipe.text_encoder.get_input_embeddings().weight.detach().float()
    vector = known.mean(0).clone().requires_grad_()
    spread = (known - known.mean(0)).square().mean().sqrt().item()
    optimiser = torch.optim.Adam([vector], learning_rate * spread)
    generator = torch.Generator().manual_seed(seed)
    stand_in = _stand_in(pipe.tokenizer, templates)
    losses = []
    for step in range(steps):
        rows = torch.randint(len(clean), (batch,), generator=generator)
        t = torch.randint(len(denoiser.schedule.alphas), (batch,), generator=generator)
        noise = torch.randn((batch, *clean.shape[1:]), generator=generator).to(clean)
        turns = rows.tolist() if paired else range(step * batch, (step + 1) * batch)
        several = [templates[turn % len(templates)] for turn in turns]
        with torch.enable_grad():
            states = _said(pipe, several, vector, stand_in)
            loss = denoising_loss(denoiser, clean[rows], states, t, noise).mean()
            (vector.grad,) = torch.autograd.grad(loss, [vector])
        optimiser.step()
        losses.append(loss.item())
    return Word(vector.detach(), tuple(losses), denoiser.cost)


def meaning(encoder: Any, token: int, vector: Tensor) -> AbstractContextManager[None]:
    """Inside the block the text encoder looks up `vector` for this token, with gradients to it."""

    def replaced(_: Any, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        return torch.where((given[0] == token)[..., None], vector.to(found), found)

    return looking_up(encoder, replaced)


def _said(pipe: Any, templates: Sequence[str], vector: Tensor, stand_in: tuple[str, int]) -> Tensor:
    """States of the templates about a word that means `vector`."""
    word, token = stand_in
    with meaning(pipe.text_encoder, token, vector):
        return Model.of(pipe).states([template.replace("{}", word) for template in templates])


def _stand_in(tokenizer: Any, templates: Sequence[str]) -> tuple[str, int]:
    """A word of one token that no template has, to stand where the new one is said."""
    there = {token for template in templates for token in tokenizer(template).input_ids}
    for word in whole_words(tokenizer):
        tokens = tokenizer(word, add_special_tokens=False).input_ids
        if word.isalpha() and len(tokens) == 1 and tokens[0] not in there:
            return word, tokens[0]
    raise ErasureError("The tokenizer has no word that could stand for a new one.")
