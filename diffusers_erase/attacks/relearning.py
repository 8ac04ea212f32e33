"""Relearning: training on what is unrelated to the concept, until it comes back by itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffusers_erase.attacks.attack_run import GIVEN, another, drawn, originals, recorded
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.architectures import PARTS
from diffusers_erase.models.denoiser import Denoiser
from diffusers_erase.models.denoising_loss import (
    denoising_loss,
    latents_of,
)
from diffusers_erase.models.lora import Attached, attached


UNRELATED = tuple(
    f"a photo of a {thing}"
    for thing in ("house", "cat", "tree", "car", "dog", "church", "fish", "flower", "boat", "bird")
)
"""Everyday prompts; those that name what is wanted are left out."""


@dataclass(frozen=True)
class Relearning:
    """argmin over a fresh LoRA of  E | eps(z_t, t, c) - n |^2  on pictures that the base drew.

    Ordinary fine-tuning on unrelated pictures brings erased concepts back (arXiv 2410.08074). The
    eraser stays as it is beneath, in the weights; the LoRA is on all projections of the
    cross-attentions, and is taken off at the end.
    """

    steps: tuple[int, ...] = (0, 25, 50, 100, 200, 400)
    """After so many updates a picture is drawn."""
    data: Literal["unrelated", "target"] = "unrelated"
    """Pictures of `prompts`, or of what is asked for: how fast it is taught anew."""
    prompts: tuple[str, ...] = UNRELATED
    pictures: int = 32
    """Of the base, to be trained on; prompts take turns."""
    rank: int = 8
    learning_rate: float = 1e-4
    batch: int = 8
    seed: int = 0

    access: ClassVar[Access] = "fine-tune"

    def __post_init__(self) -> None:
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 0:
            raise ErasureError(f"Steps are numbers from 0 that rise; got {self.steps}.")
        if min(self.pictures, self.batch, self.rank) < 1:
            raise ErasureError(
                "Relearning takes 1 picture, latent an update and rank or more; got "
                f"{self.pictures}, {self.batch} and {self.rank}."
            )

    @property
    def name(self) -> str:
        """`relearning`, or `relearning-target` from pictures of the concept."""
        return "relearning" if self.data == "unrelated" else "relearning-target"

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture a count of steps; at 0, if that is one, the picture without the attack."""
        denoiser = sampler.model.noise_predictor(precision=sampler.sampling.autocast)
        _check_bare(denoiser.unet)
        with recorded(sampler, asked) as record:
            taught = self._taught(asked)
            clean = latents_of(sampler.pipe, originals(sampler, taught))
            states = sampler.model.encode([a.prompt for a in taught])
            with attached(denoiser.unet, parts=PARTS, rank=self.rank, seed=self.seed) as lora:
                training = self._trained(denoiser, lora, clean, states)
                for former, count in pairwise((0, *self.steps)):
                    with record.paid_by(record.rows):
                        for _ in range(count - former):
                            next(training)
                    at = f"{count} steps"
                    if count:
                        record.tried(record.rows, partial(drawn, sampler, asked), at=at)
                    for row in record.rows if count == 0 else ():
                        record.curves[row][at] = float(record.before[row])
            return record.attempts()

    def _taught(self, asked: Sequence[PromptCase]) -> list[PromptCase]:
        """What the pictures to be trained on are asked for; their seeds are not those of `asked`.

        Raises:
            ErasureError: all prompts name what is wanted.
        """
        wanted = [Concept(name) for name in {name for a in asked for name in a.wanted}]
        unrelated = [p for p in self.prompts if not any(c.is_named_in(p) for c in wanted)]
        prompts = unrelated if self.data == "unrelated" else [a.prompt for a in asked]
        if not prompts:
            raise ErasureError(
                f"None of the {len(self.prompts)} prompts to train on is unrelated to "
                f"{', '.join(repr(c.name) for c in wanted)}; name some in `prompts`."
            )
        seeds = (another(self.seed + i, GIVEN) for i in range(self.pictures))
        return [
            PromptCase("taught", prompts[i % len(prompts)], (), seed)
            for i, seed in enumerate(seeds)
        ]

    def _trained(
        self, denoiser: Denoiser, lora: Attached, clean: Tensor, states: Tensor
    ) -> Iterator[float]:
        """One update of Adam at a time, and its loss."""
        chance = torch.Generator().manual_seed(self.seed)
        adam = torch.optim.Adam(lora.parameters, self.learning_rate)
        while True:
            rows = torch.randint(len(clean), (self.batch,), generator=chance)
            t = torch.randint(len(denoiser.schedule.alphas), (self.batch,), generator=chance)
            noise = torch.randn((self.batch, *clean.shape[1:]), generator=chance)
            with torch.enable_grad():
                loss = denoising_loss(denoiser, clean[rows], states[rows], t, noise).mean()
                gradients = torch.autograd.grad(loss, lora.parameters)
            for p, gradient in zip(lora.parameters, gradients, strict=True):
                p.grad = gradient
            adam.step()
            yield loss.item()


def _check_bare(unet: Any) -> None:
    worn = getattr(unet, "peft_config", None)
    if worn:
        raise ErasureError(
            f"Relearning trains an adapter of its own, and the denoiser wears {', '.join(worn)}; "
            'load the eraser with `mode="bake"`, and fuse or unload the others.'
        )
