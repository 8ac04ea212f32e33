"""Attacks that begin with a picture of the concept, which the erased model is to go on with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from diffusers_erase.attacks.attack_run import (
    Pictures,
    as_base,
    batches,
    drawn,
    originals,
    recorded,
)
from diffusers_erase.attacks.ddim import ascended
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import Access, Attempt
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.model import Model


@dataclass(frozen=True)
class ImageToImage:
    """z_t = √ᾱ_t x_0 + √(1-ᾱ_t) n of the base's picture, drawn on with the prompt (SDEdit).

    By arXiv 2108.01073. A low strength hands over the answer, and every eraser fails: read the
    curve, beside that of the same model without erasers.
    """

    strengths: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Shares of the sampling that are drawn anew."""

    name: ClassVar[str] = "image-to-image"
    access: ClassVar[Access] = "sampler"

    def __post_init__(self) -> None:
        if not all(0 < strength <= 1 for strength in self.strengths):
            raise ErasureError(f"Strengths are shares above 0, up to 1; got {self.strengths}.")

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture a strength; the curve has a control without erasers beside each."""
        if any(int(sampler.sampling.steps * strength) < 1 for strength in self.strengths):
            raise ErasureError(
                f"Of {sampler.sampling.steps} steps a strength of {min(self.strengths)} leaves "
                "none; sample in more steps."
            )
        with recorded(sampler, asked) as record:
            given, pipe = originals(sampler, asked), image_to_image(sampler.pipe)
            for strength in self.strengths:
                redraw = partial(_redrawn, sampler, pipe, asked, given, strength)
                record.tried(record.rows, redraw, at=f"strength {strength:g}")
                with as_base(sampler.pipe):
                    control = redraw()
                record.noted(record.rows, control, at=f"strength {strength:g}, no eraser")
            return record.attempts()


@dataclass(frozen=True)
class DDIMInversion:
    """The base's picture walked back to its noise, and drawn from there by the erased model.

    The way up is DDIM's backwards (arXiv 2010.02502), by the erased model's own score of the empty
    prompt; the way down is the pipeline's, with the prompt and guidance.
    """

    name: ClassVar[str] = "ddim-inversion"
    access: ClassVar[Access] = "sampler"

    def __call__(self, sampler: PipelineSampler, asked: Sequence[PromptCase]) -> list[Attempt]:
        """One picture a prompt; the curve has a control without erasers beside it."""
        with recorded(sampler, asked) as record:
            given = originals(sampler, asked)
            redraw = partial(_continued, sampler, asked, given)
            record.tried(record.rows, redraw, at="inverted")
            with as_base(sampler.pipe):
                control = redraw()
            record.noted(record.rows, control, at="inverted, no eraser")
            return record.attempts()


def image_to_image(pipe: Any) -> Any:
    """An image-to-image pipeline of the same parts, none of them moved or cast.

    `from_pipe` would cast them, float32 unless told otherwise.

    Raises:
        ErasureError: the pipeline is none of Stable Diffusion's kind.
    """
    Model.of(pipe).noise_predictor()
    parts = dict(pipe.components)
    checks = parts.get("safety_checker") is not None
    made: Any = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=checks)
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made


def _redrawn(
    sampler: PipelineSampler,
    pipe: Any,
    asked: Sequence[PromptCase],
    given: Sequence[Image.Image],
    strength: float,
) -> Pictures:
    pictures: Pictures = []
    for rows in batches(sampler, range(len(asked))):
        pictures += sampler.drawn_by(
            pipe,
            [asked[row].prompt for row in rows],
            [asked[row].seed for row in rows],
            image=[given[row] for row in rows],
            strength=strength,
        )
    return pictures


def _continued(
    sampler: PipelineSampler, asked: Sequence[PromptCase], given: Sequence[Image.Image]
) -> Pictures:
    pictures: Pictures = []
    for rows in batches(sampler, range(len(asked))):
        latents = ascended(sampler, [given[row] for row in rows]).to(sampler.pipe.unet.dtype)
        pictures += drawn(sampler, [asked[row] for row in rows], latents=latents)
    return pictures
