"""The pipeline under test, its sampling settings, and the detector that judges its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import Detector, Verdict, info_of, shows_any, verdicts_of
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.models.model import Model, Pipeline
from diffusers_erase.runtime.plugin import erasures_disabled, erasures_key
from diffusers_erase.storage.tensor_cache import digest


Precision = Literal["float32", "bfloat16", "float16"]


def fast_precision() -> Precision:
    """bfloat16 where the processor has it; without AVX-512 it is some thirty times slower."""
    known = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "bfloat16" if torch.cuda.is_available() or known else "float32"


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler, the same for the base model and the erased one."""

    steps: int = 25
    guidance: float = 5.0
    precision: Precision = "float32"
    """Precision of autocast; float32 for no autocast."""
    batch: int = 16
    """Pictures drawn together; it changes them by rounding only."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ErasureError(
                f"Sampling needs `steps` and `batch` of 1 or more; got {self.steps} and "
                f"{self.batch}."
            )

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast; None for no autocast."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return None if dtype == torch.float32 else dtype


@dataclass(frozen=True)
class PipelineSampler:
    """Draws pictures with the erasers that are loaded, and judges them."""

    pipe: Any
    detector: Detector
    sampling: Sampling = Sampling()

    @property
    def model(self) -> Model:
        """The model of the pipeline."""
        return Model.of(self.pipe)

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], **options: Any
    ) -> list[Image.Image]:
        """One picture per prompt and seed; `options` are further arguments of the pipeline."""
        return self.draw_with(self.pipe, prompts, seeds, **options)

    def draw_with(
        self, pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], **options: Any
    ) -> list[Image.Image]:
        """The same with another pipeline of the same model."""
        settings = self.sampling
        low = settings.autocast
        with torch.autocast(pipe._execution_device.type, low, enabled=low is not None):
            return draw(
                pipe,
                prompts,
                guidance=settings.guidance,
                steps=settings.steps,
                seed=seeds,
                batch=settings.batch,
                **options,
            )

    def judge(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """The detector's verdicts, one per picture."""
        return verdicts_of(self.detector, pictures)

    def shows(self, pictures: Sequence[Image.Image], wanted: Sequence[str]) -> list[bool]:
        """Tell for each picture whether it shows one of the wanted labels."""
        return [shows_any(verdict.labels, wanted) for verdict in self.judge(pictures)]

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines verdicts besides prompt and seed, under which they are stored."""
        return {
            "base": base_digest(self.pipe),
            "erasers": erasures_key(self.pipe),
            "scheduler": scheduler_settings(self.pipe.scheduler),
            "sampling": {k: v for k, v in asdict(self.sampling).items() if k != "batch"},
            "detector": info_of(self.detector),
        }


def base_digest(pipe: Pipeline) -> str:
    """The digest of the weights of all networks of the pipeline, without its erasers."""
    parts = [getattr(part, "_orig_mod", part) for _, part in sorted(vars(pipe).items())]
    with erasures_disabled(pipe):
        return digest(*(part for part in parts if isinstance(part, nn.Module)))


def scheduler_settings(scheduler: Any) -> Mapping[str, Any]:
    """The class of a scheduler and its settings."""
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    return {"class": type(scheduler).__name__, **settings}
