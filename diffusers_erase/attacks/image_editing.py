"""Attacks that start from a picture of the base model, which the erased model continues."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from diffusers_erase.attacks.attack_run import (
    attack_run,
    base_model,
    base_pictures,
    draw_cases,
)
from diffusers_erase.attacks.ddim import draw_without_text, invert_ddim
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.attack import NO_ERASER, Access, Attempt
from diffusers_erase.evaluation.sampler import PipelineSampler
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.models.model import Model, Pipeline


@dataclass(frozen=True)
class ImageToImage:
    """SDEdit: z_t = √ᾱ_t x_0 + √(1-ᾱ_t) n of the base's picture, denoised with the prompt.

    See arXiv 2108.01073. With a low strength the picture itself remains, and every eraser fails:
    read the curve beside that of the same model without erasers.
    """

    strengths: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Shares of the sampling steps that are run."""

    name: ClassVar[str] = "image-to-image"
    access: ClassVar[Access] = "sampler"

    def __post_init__(self) -> None:
        if not all(0 < strength <= 1 for strength in self.strengths):
            raise ErasureError(f"Strengths are shares above 0, up to 1; got {self.strengths}.")

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One picture per strength; the curve has a control without erasers for each."""
        if any(int(sampler.sampling.steps * strength) < 1 for strength in self.strengths):
            raise ErasureError(
                f"A strength of {min(self.strengths)} leaves none of {sampler.sampling.steps} "
                "steps; sample in more steps."
            )
        with attack_run(sampler, cases) as run:
            given, pipe = base_pictures(sampler, cases), image_to_image(sampler.pipe)
            for strength in self.strengths:
                redraw = partial(
                    sampler.draw_with,
                    pipe,
                    [case.prompt for case in cases],
                    [case.seed for case in cases],
                    each={"image": given},
                    strength=strength,
                )
                run.attempt(run.rows, redraw, f"strength {strength:g}")
                with base_model(sampler.pipe):
                    control = redraw()
                run.hits(run.rows, control, f"strength {strength:g}{NO_ERASER}")
            return run.attempts


@dataclass(frozen=True)
class DDIMInversion:
    """The base's picture inverted to its noise, from which the erased model draws.

    DDIM inversion (arXiv 2010.02502) uses the erased model's noise predictions for the empty
    prompt; the pipeline draws with the prompt and guidance. Without text DDIM draws with the empty
    prompt: TINA (arXiv 2603.17828), text-free inversion. The more exact the inversion, the more
    of the picture any model returns, also one that never knew the concept: compare with such a one.
    """

    iterations: int = 0
    """Fixed-point iterations of each step of the inversion, of one evaluation each."""
    text: bool = True
    """Draw with the prompt; else with the empty one."""

    access: ClassVar[Access] = "sampler"

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ErasureError(f"Inversion needs 0 `iterations` or more; got {self.iterations}.")

    @property
    def name(self) -> str:
        """`ddim-inversion`, or `tina` without text."""
        return "ddim-inversion" if self.text else "tina"

    def __call__(self, sampler: PipelineSampler, cases: Sequence[PromptCase]) -> list[Attempt]:
        """One picture per case; the curve has a control without erasers."""
        with attack_run(sampler, cases) as run:
            given = base_pictures(sampler, cases)

            def redraw() -> list[Image.Image]:
                latents = invert_ddim(sampler, given, self.iterations)
                if not self.text:
                    return draw_without_text(sampler, latents)
                return draw_cases(
                    sampler, cases, each={"latents": latents.to(sampler.pipe.unet.dtype)}
                )

            run.attempt(run.rows, redraw, "inverted")
            with base_model(sampler.pipe):
                control = redraw()
            run.hits(run.rows, control, f"inverted{NO_ERASER}")
            return run.attempts


def image_to_image(pipe: Pipeline) -> Any:
    """An image-to-image pipeline of the same parts, none of them moved or cast.

    `from_pipe` would cast them to float32.
    """
    Model.of(pipe).noise_predictor()
    parts = dict(pipe.components)
    checks = parts.get("safety_checker") is not None
    made: Any = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=checks)
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made
