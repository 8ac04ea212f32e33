"""Relearning: fine-tuning on pictures unrelated to the concept, which can bring it back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch

from diffusers_erase.attacks.attack_run import (
    GIVEN_SEEDS,
    attack_run,
    base_pictures,
    draw_cases,
    nth_seed,
)
from diffusers_erase.concepts import Concept
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.architectures import PARTS
from diffusers_erase.models.denoising_loss import encode_pictures, minimised
from diffusers_erase.models.lora import attached


UNRELATED = tuple(
    f"a photo of a {thing}"
    for thing in ("house", "cat", "tree", "car", "dog", "church", "fish", "flower", "boat", "bird")
)
"""Everyday prompts; those that name a wanted label are left out."""


@dataclass(frozen=True)
class Relearning:
    """argmin over a fresh LoRA of  E | eps(z_t, t, c) - n |^2  on pictures of the base model.

    Ordinary fine-tuning on unrelated pictures brings erased concepts back (arXiv 2410.08074). The
    eraser stays in the weights beneath. The LoRA is on all projections of the cross-attentions and
    is removed at the end.
    """

    steps: tuple[int, ...] = (0, 25, 50, 100, 200, 400)
    """Numbers of updates after which a picture is drawn."""
    data: Literal["unrelated", "target"] = "unrelated"
    """Pictures of `prompts`, or of the cases themselves: how fast the concept is learnt again."""
    prompts: tuple[str, ...] = UNRELATED
    pictures: int = 32
    """Pictures of the base model to train on; prompts take turns."""
    rank: int = 8
    learning_rate: float = 1e-4
    batch: int = 8
    """Latents per update."""
    seed: int = 0

    access: ClassVar[Access] = "fine-tune"

    def __post_init__(self) -> None:
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 0:
            raise ErasureError(f"`steps` are increasing numbers of 0 or more; got {self.steps}.")
        if min(self.pictures, self.batch, self.rank) < 1:
            raise ErasureError(
                "Relearning needs `pictures`, `batch` and `rank` of 1 or more; got "
                f"{self.pictures}, {self.batch} and {self.rank}."
            )

    @property
    def name(self) -> str:
        """`relearning`, or `relearning-target` from pictures of the cases."""
        return "relearning" if self.data == "unrelated" else "relearning-target"

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One picture per number of updates; for 0 it is the picture without the attack."""
        denoiser = sampler.model.noise_predictor(precision=sampler.sampling.autocast)
        _require_no_adapters(denoiser.unet)
        with attack_run(sampler, cases) as run:
            training_cases = self._training_cases(cases)
            clean = encode_pictures(sampler.pipe, base_pictures(sampler, training_cases))
            states = sampler.model.encode([case.prompt for case in training_cases])
            with attached(denoiser.unet, parts=PARTS, rank=self.rank, seed=self.seed) as lora:
                updates = minimised(
                    denoiser,
                    clean,
                    lora.parameters,
                    states.__getitem__,
                    batch=self.batch,
                    learning_rate=self.learning_rate,
                    generator=torch.Generator().manual_seed(self.seed),
                )
                for former, count in pairwise((0, *self.steps)):
                    with run.charged_to(run.rows):
                        for _ in range(count - former):
                            next(updates)
                    setting = f"{count} steps"
                    if count:
                        run.attempt(run.rows, partial(draw_cases, sampler, cases), setting)
                    for attempt in run.attempts if count == 0 else ():
                        attempt.curve[setting] = float(attempt.before)
            return run.attempts

    def _training_cases(self, cases: Sequence[PromptCase]) -> list[PromptCase]:
        """Cases of the pictures to train on, with other seeds than those under attack."""
        wanted = [Concept(name) for name in {name for case in cases for name in case.wanted}]
        unrelated = [p for p in self.prompts if not any(c.is_named_in(p) for c in wanted)]
        prompts = unrelated if self.data == "unrelated" else [case.prompt for case in cases]
        if not prompts:
            raise ErasureError(
                f"All {len(self.prompts)} prompts to train on name "
                f"{', '.join(repr(c.name) for c in wanted)}; give unrelated ones in `prompts`."
            )
        return [
            PromptCase(
                "training", prompts[i % len(prompts)], (), nth_seed(self.seed + i, GIVEN_SEEDS)
            )
            for i in range(self.pictures)
        ]


def _require_no_adapters(unet: Any) -> None:
    names = getattr(unet, "peft_config", None)
    if names:
        raise ErasureError(
            f"Relearning trains an adapter of its own, and the denoiser has {', '.join(names)}; "
            'load the eraser with `mode="bake"`, and fuse or unload the others.'
        )
