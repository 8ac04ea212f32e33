"""Other people's ways of erasing, written from their equations: what ours is measured against.

Each ends in an `EraserAdapter`, also where full weights were trained. UNet evaluations are counted
by a hook: a forward of one latent is one, its backward two.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_erase.concepts import Concept
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.models.architectures import fingerprint, projections, text_weights
from diffusers_erase.models.text_states import encode


@torch.no_grad()
def uce(
    pipe: Any, concept: Concept, target: str, retain: Sequence[str], *, ridge: float = 0.1
) -> EraserAdapter:
    """UCE (arXiv 2308.14761): W' = W (I + P), P = (V - E)^T E (E^T E + R^T R + λ I)^-1, as a LoRA.

    E are the states of prompts with the concept, V of the same prompts with the target, R of the
    retained words' prompts and of the empty prompt.
    """
    prompts = concept.example_prompts(16)
    E = _rows(pipe, [prompt.text for prompt in prompts])
    V = _rows(pipe, [prompt.about(target) for prompt in prompts])
    R = _rows(pipe, ["", *(f"a photo of a {word}" for word in retain)])
    M = E.T @ E + R.T @ R + ridge * torch.eye(E.shape[1], dtype=E.dtype)
    P = torch.linalg.solve(M, E.T @ (V - E)).T
    factors = TextMap.of(P).factors(text_weights(pipe.unet))
    config = EraserConfig(
        (ErasedConcept.of(concept, target),),
        recipe="uce",
        fingerprint=fingerprint(pipe.unet),
        rank=len(next(iter(factors.values()))[0]),
    )
    return EraserAdapter((Lora(factors),), config)


def _rows(pipe: Any, prompts: Sequence[str]) -> Tensor:
    states = encode(pipe, prompts).double()
    return states.reshape(-1, states.shape[-1])


@dataclass
class Loop:
    """A released training loop on full weights: latents sampled anew for every update, batch 1."""

    pipe: Any
    prompts: Sequence[str]
    answers: Sequence[str]
    learning_rate: float
    guidance: float = 3.0
    steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        unet = self.pipe.unet
        self.layers = projections(unet)
        self.base = {path: layer.weight.detach().clone() for path, layer in self.layers.items()}
        unet.requires_grad_(False)
        self.weights = [layer.weight.requires_grad_(True) for layer in self.layers.values()]
        self.optimiser = torch.optim.Adam(self.weights, self.learning_rate)
        self.chance = torch.Generator().manual_seed(self.seed)
        self.scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        self.scheduler.set_timesteps(self.steps)
        self.states = encode(self.pipe, self.prompts)
        self.answered = encode(self.pipe, self.answers)
        self.null = encode(self.pipe, [""])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Context manager: the weights are the base's (the released codes have a second model)."""
        with torch.no_grad():
            now = [weight.detach().clone() for weight in self.weights]
            for weight, base in zip(self.weights, self.base.values(), strict=True):
                weight.copy_(base)
            yield
            for weight, value in zip(self.weights, now, strict=True):
                weight.copy_(value)

    @torch.no_grad()
    def sampled(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """A latent a random number of guided steps down, and the time it stands at."""
        size = self.pipe.unet.config.sample_size
        z = torch.randn(1, 4, size, size, generator=self.chance)
        last = int(torch.randint(self.steps, (), generator=self.chance))
        both = torch.cat([states, self.null])
        for t in self.scheduler.timesteps[:last]:
            conditional, empty = self.pipe.unet(z.repeat(2, 1, 1, 1), t, both, return_dict=False)[
                0
            ].chunk(2)
            guided = empty + self.guidance * (conditional - empty)
            z = self.scheduler.step(guided, t, z).prev_sample
        return z, self.scheduler.timesteps[last]

    def score(self, z: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """eps(z, t, c) with the weights as they are."""
        said: Tensor = self.pipe.unet(z, t, states, return_dict=False)[0]
        return said

    def descend(self, loss: Tensor) -> None:
        """One step of Adam."""
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    @torch.no_grad()
    def eraser(self, concept: Concept, recipe: str) -> EraserAdapter:
        """The change of the weights as factors of full rank; the UNet gets its base back."""
        factors, rank = {}, 0
        for path, layer in self.layers.items():
            layer.weight.requires_grad_(False)
            U, S, Vh = torch.linalg.svd((layer.weight - self.base[path]).double(), False)
            factors[path] = (Vh.float(), (U * S).float())
            rank = max(rank, len(S))
            layer.weight.copy_(self.base[path])
        story = {"recipe": recipe, "fingerprint": fingerprint(self.pipe.unet), "rank": rank}
        return EraserAdapter(
            (Lora(factors),), EraserConfig((ErasedConcept.of(concept, None),), **story)
        )


def esd(loop: Loop, updates: int) -> None:
    """ESD (arXiv 2303.07345), current code: goal eps*(∅) - [eps*(c) - eps*(∅)], frozen latents."""
    for _ in range(updates):
        k = int(torch.randint(len(loop.states), (), generator=loop.chance))
        c = loop.states[k : k + 1]
        with loop.frozen():
            z, t = loop.sampled(c)
            concept, empty = loop.score(z, t, c), loop.score(z, t, loop.null)
        loop.descend((loop.score(z, t, c) - (2 * empty - concept)).square().mean())


def age(loop: Loop, updates: int, words: Sequence[str], concept: Concept) -> None:
    """AGE (arXiv 2501.18950) as released, its pairing of latents and times repaired.

    Per update one descent on the weights and one ascent on the mixture, each with two fresh runs of
    the student; errors on the clean picture; the mixture learns from the second term alone.
    """
    logits = torch.zeros(len(words), requires_grad=True)
    climber = torch.optim.Adam([logits], 1e-2, maximize=True)
    answers = torch.stack(
        [encode(loop.pipe, [concept.replaced(p, word) for p in loop.prompts]) for word in words], 1
    )
    for _ in range(updates):
        for learns in (False, True):
            k = int(torch.randint(len(loop.states), (), generator=loop.chance))
            noise = torch.empty_like(logits).exponential_(generator=loop.chance).log().neg()
            soft = ((logits + noise) / 2.0).softmax(0)
            hard = torch.nn.functional.one_hot(soft.argmax(), len(words)).to(soft)
            mixed = torch.einsum("k,ktw->tw", hard + soft - soft.detach(), answers[k])[None]
            c, tau = loop.states[k : k + 1], mixed.detach()
            z, t = loop.sampled(c)
            z_tau, t_tau = loop.sampled(tau)
            with loop.frozen():
                target, away = loop.score(z, t, tau), loop.score(z, t, c)
                kept = loop.score(z_tau, t_tau, tau)
            first = loop.score(z, t, c) - (2 * target - away)
            second = loop.score(z_tau, t_tau, mixed if learns else tau) - kept
            loss = _clean(loop, t, first) + _clean(loop, t_tau, second)
            if learns:
                logits.grad = torch.autograd.grad(loss, logits)[0]
                climber.step()
            else:
                loop.descend(loss)


def _clean(loop: Loop, t: Tensor, error: Tensor) -> Tensor:
    alpha = loop.scheduler.alphas_cumprod[t]
    return (1 - alpha) / alpha * error.square().mean()
