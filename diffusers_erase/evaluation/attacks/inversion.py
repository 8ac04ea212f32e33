"""Concept inversion: a new word, learnt from pictures, by which the model draws the concept."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusers_erase.concepts import states_of, whole_words
from diffusers_erase.crossattention import denoiser_of
from diffusers_erase.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.errors import ErasureError


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
        return _said(pipe, templates, self.vector)


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

    Raises:
        ErasureError: no picture, a template without `{}`, or another kind of pipeline.
    """
    if not pictures or not templates:
        raise ErasureError("Concept inversion learns from pictures and prompts; name some of each.")
    for template in templates:
        if template.count("{}") != 1:
            raise ErasureError(f"The prompt {template!r} needs one '{{}}', for the word.")
    schedule = NoiseSchedule.of(pipe.scheduler)
    denoiser = Denoiser(denoiser_of(pipe), schedule, precision=precision)
    clean = _latents(pipe, pictures)
    known = pipe.text_encoder.get_input_embeddings().weight.detach().float()
    vector = known.mean(0).clone().requires_grad_()
    spread = (known - known.mean(0)).square().mean().sqrt().item()
    optimiser = torch.optim.Adam([vector], learning_rate * spread)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        rows = torch.randint(len(clean), (batch,), generator=generator)
        t = torch.randint(len(schedule.alphas), (batch,), generator=generator)
        noise = torch.randn((batch, *clean.shape[1:]), generator=generator).to(clean)
        alpha = schedule.alpha(t).to(clean)
        z = alpha.sqrt() * clean[rows] + (1 - alpha).sqrt() * noise
        several = [templates[(step * batch + i) % len(templates)] for i in range(batch)]
        said = denoiser.teacher(z, t, _said(pipe, several, vector))
        loss = (said - noise).square().mean()
        optimiser.zero_grad()
        (vector.grad,) = torch.autograd.grad(loss, [vector])
        optimiser.step()
        losses.append(loss.item())
    return Word(vector.detach(), tuple(losses), 3 * denoiser.evaluations)


@contextmanager
def meaning(encoder: Any, token: int, vector: Tensor) -> Iterator[None]:
    """Inside the block the text encoder looks up `vector` for this token, with gradients to it."""

    def looked_up(_: Any, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        return torch.where((given[0] == token)[..., None], vector.to(found), found)

    hook = encoder.get_input_embeddings().register_forward_hook(looked_up)
    try:
        yield
    finally:
        hook.remove()


def _said(pipe: Any, templates: Sequence[str], vector: Tensor) -> Tensor:
    """States of the templates about a word that means `vector`."""
    stand_in, token = _stand_in(pipe.tokenizer, templates)
    with meaning(pipe.text_encoder, token, vector):
        return states_of(pipe, [template.format(stand_in) for template in templates])


def _stand_in(tokenizer: Any, templates: Sequence[str]) -> tuple[str, int]:
    """A word of one token that no template has, to stand where the new one is said."""
    there = {token for template in templates for token in tokenizer(template).input_ids}
    for word in whole_words(tokenizer):
        tokens = tokenizer(word, add_special_tokens=False).input_ids
        if word.isalpha() and len(tokens) == 1 and tokens[0] not in there:
            return word, tokens[0]
    raise ErasureError("The tokenizer has no word that could stand for a new one.")


@torch.no_grad()
def _latents(pipe: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """Means of the VAE, scaled as the denoiser knows them, N x C x h x w."""
    pixels = pipe.image_processor.preprocess(list(pictures))
    weights = next(pipe.vae.parameters())
    encoded = pipe.vae.encode(pixels.to(weights.device, weights.dtype)).latent_dist.mean
    latents: Tensor = encoded.float() * pipe.vae.config.scaling_factor
    return latents
