"""A pipeline, how it is sampled, and who looks at what it draws."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import Detector, Verdict, info_of, shows_any, verdicts_of
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.models.model import Model
from diffusers_erase.runtime.plugin import erasures_disabled, erasures_key
from diffusers_erase.storage.tensor_cache import digest


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; the same for base and erased, or nothing could be compared."""

    steps: int = 25
    guidance: float = 5.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast's; float32 for none."""
    batch: int = 16
    """Pictures at once; the pictures are the same, but for rounding."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ErasureError(
                f"Pictures are drawn in 1 step or more, 1 or more at once; got {self.steps} steps "
                f"and {self.batch} at once."
            )

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of autocast; None for none."""
        low: torch.dtype = getattr(torch, self.precision)
        return None if low == torch.float32 else low


@dataclass(frozen=True)
class PipelineSampler:
    """Draws what it is asked for with the erasers that are loaded, and looks at it."""

    pipe: Any
    detector: Detector
    sampling: Sampling = Sampling()

    @property
    def model(self) -> Model:
        """What is known of the pipeline."""
        return Model.of(self.pipe)

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], **options: Any
    ) -> list[Image.Image]:
        """One picture per prompt and seed; `options` are the pipeline's, beside the sampling."""
        return self.drawn_by(self.pipe, prompts, seeds, **options)

    def drawn_by(
        self, pipe: Any, prompts: Sequence[str], seeds: Sequence[int], **options: Any
    ) -> list[Image.Image]:
        """The same from another pipeline around the same model."""
        how, device = self.sampling, pipe._execution_device
        low = getattr(torch, how.precision)
        with torch.autocast(device.type, low, enabled=low != torch.float32):
            return draw(
                pipe,
                prompts,
                guidance=how.guidance,
                steps=how.steps,
                seed=seeds,
                batch=how.batch,
                **options,
            )

    def look(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """What the detector says, one verdict for each picture.

        Raises:
            ErasureError: it says something else than that.
        """
        return verdicts_of(self.detector, pictures)

    def shows(self, pictures: Sequence[Image.Image], wanted: Sequence[str]) -> list[bool]:
        """Whether any of the labels is seen, picture by picture."""
        return [shows_any(verdict.labels, wanted) for verdict in self.look(pictures)]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides what is drawn and said, but for prompt and seed.

        The digest of the base's weights, the erasers in force, the sampling and the detector.
        """
        return {
            "base": base_digest(self.pipe),
            "erasers": erasures_key(self.pipe),
            "scheduler": _plain(self.pipe.scheduler),
            "sampling": {k: v for k, v in asdict(self.sampling).items() if k != "batch"},
            "detector": info_of(self.detector),
        }


def base_digest(pipe: Any) -> str:
    """The digest of the weights of all networks of the pipeline, without its erasers."""
    parts = [getattr(part, "_orig_mod", part) for _, part in sorted(vars(pipe).items())]
    with erasures_disabled(pipe):
        return digest(*(part for part in parts if isinstance(part, nn.Module)))


def _plain(scheduler: Any) -> Mapping[str, Any]:
    kept = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    return {"class": type(scheduler).__name__, **kept}
