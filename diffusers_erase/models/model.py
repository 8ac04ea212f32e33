"""`Model.of(pipe)`: the one place that knows the parts of a pipeline and what they can do."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import (
    ARCHITECTURES,
    COMPONENTS,
    Architecture,
    architecture,
    unusual_text_path,
)
from diffusers_erase.models.denoiser import Denoiser, NoiseSchedule
from diffusers_erase.models.text_states import encode_arguments, ending_at, text_states


class Pipeline(Protocol):
    """The attributes of a diffusers pipeline that the library uses, beside its parts."""

    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    vae: Any
    image_processor: Any

    @property
    def components(self) -> Mapping[str, Any]:
        """Name -> part: text encoders, tokenizers, denoiser, VAE ..."""

    @property
    def _execution_device(self) -> torch.device: ...

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """Text states of prompts."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Pictures."""


LONG_TEXT = 32
"""Least number of text states of a prompt from which on its padding costs more than its words."""

Segment = tuple[Any, int | None]
"""A tokenizer (None if its encoder was not loaded) and its number of states; None: the rest."""


@dataclass(frozen=True)
class Model:
    """A pipeline, or a denoiser alone, with its row of the table of architectures.

    Attributes of missing parts raise an `ErasureError` that names them.
    """

    source: Any
    """The pipeline, or the denoiser."""
    found: nn.Module | None
    """The denoiser, without a compiled wrapper; None if the pipeline was loaded without one."""

    @classmethod
    def of(cls, source: Any) -> "Model":
        """The model of a pipeline, with or without a denoiser, of a denoiser, or of a `Model`.

        Raises:
            ErasureError: the denoiser's class is not in the table of architectures.
        """
        if isinstance(source, Model):
            return source
        module = source if isinstance(source, nn.Module) else _first(source, COMPONENTS)
        module = getattr(module, "_orig_mod", module)
        if module is not None:
            architecture(type(module).__name__)
        return cls(source, module)

    @property
    def name(self) -> str:
        """The Hub id the pipeline came from, or its folder's name: paths are private."""
        name = str(getattr(self.source, "name_or_path", None) or "")
        return Path(name).name if Path(name).exists() else name

    @property
    def kind(self) -> str:
        """The class of the pipeline, for messages."""
        return type(self.source).__name__

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline.

        Raises:
            ErasureError: only a denoiser was given.
        """
        if isinstance(self.source, nn.Module):
            raise ErasureError(f"This needs a pipeline; got a bare '{self.kind}'.")
        return cast(Pipeline, self.source)

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer.

        Raises:
            ErasureError: there is none.
        """
        if self.found is None:
            raise ErasureError(
                f"'{self.kind}' has no denoiser; load the pipeline with its UNet or transformer. "
                f"Supported: {', '.join(ARCHITECTURES)}."
            )
        return self.found

    @property
    def architecture(self) -> Architecture | None:
        """The row of the denoiser's class; of the class the pipeline declares if none is loaded."""
        if self.found is not None:
            return architecture(type(self.found).__name__)
        declared = inspect.signature(type(self.source).__init__).parameters
        names = (declared[part].annotation for part in COMPONENTS if part in declared)
        known = (ARCHITECTURES.get(getattr(name, "__name__", str(name))) for name in names)
        return next((row for row in known if row is not None), None)

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule and what the network predicts.

        Raises:
            ErasureError: the scheduler has none of Stable Diffusion's kind.
        """
        return NoiseSchedule.of(self.pipeline.scheduler)

    @cached_property
    def device(self) -> torch.device:
        """The device that the pipeline computes on."""
        return self.pipeline._execution_device

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """The text encoders that were loaded."""
        found = (getattr(self.source, f"text_encoder{n}", None) for n in ("", "_2", "_3"))
        return tuple(encoder for encoder in found if encoder is not None)

    @property
    def tokenizer(self) -> Any:
        """The first tokenizer."""
        found = _first(self.source, ("tokenizer", "tokenizer_2", "tokenizer_3"))
        if found is None:
            raise ErasureError(f"'{self.kind}' has no tokenizer; load the pipeline with it.")
        return found

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizers that were loaded."""
        found = (getattr(self.source, f"tokenizer{n}", None) for n in ("", "_2", "_3"))
        return tuple(tokenizer for tokenizer in found if tokenizer is not None)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The tokenizers whose states stand one after another, with how many states each has."""
        row = self.architecture
        found = tuple(
            (getattr(self.source, name, None), getattr(self.source, length) if length else None)
            for name, length in (row.tokenizers if row else ())
        )
        return found if any(tokenizer for tokenizer, _ in found) else ((self.tokenizer, None),)

    @property
    def textless(self) -> str:
        """Why prompts cannot be encoded; empty if they can."""
        if isinstance(self.source, nn.Module):
            return f"'{self.kind}' is a denoiser without a text encoder"
        if not callable(getattr(self.source, "encode_prompt", None)):
            return f"'{self.kind}' has no method `encode_prompt`"
        try:
            inspect.signature(self.source.encode_prompt).bind(**encode_arguments(self.source, ()))
        except TypeError as error:
            return f"`encode_prompt` of '{self.kind}' cannot be called with prompts alone ({error})"
        return "" if self.text_encoders else f"'{self.kind}' was loaded without a text encoder"

    def states(self, prompts: Sequence[str]) -> Tensor:
        """Text states of the prompts, P x tokens x width, with gradients if the encoder has them.

        Raises:
            ErasureError: the pipeline cannot encode prompts; the message says what it lacks.
        """
        return self._states(self.source, prompts)

    def _states(self, source: Any, prompts: Sequence[str]) -> Tensor:
        """Text states by the pipeline `source`: this one, or a copy that ends prompts early."""
        if self.textless:
            raise ErasureError(
                f"{self.textless}; pass a pipeline with `encode_prompt` and its text encoders, "
                "such as StableDiffusionPipeline."
            )
        try:
            return text_states(source, prompts, self.device)
        except (AttributeError, TypeError, ValueError) as error:  # of a part that is not there
            raise ErasureError(
                f"`encode_prompt` of '{self.kind}' failed ({error}); pass a pipeline with all its "
                "text encoders and tokenizers."
            ) from error

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text states of the prompts, P x tokens x width, without gradients."""
        return self.states(prompts)

    @cached_property
    def empty_states(self) -> Tensor:
        """Text states of the empty prompt, 1 x tokens x width."""
        return self.encode([""])

    @property
    def text_length(self) -> int:
        """Number of text states of every prompt."""
        return self.empty_states.shape[1]

    @cached_property
    def ends_early(self) -> bool:
        """True if a prompt's first states are the same, and cheaper, if nothing more is encoded.

        So it is where states depend on what stands before them alone, as CLIP's do; measured on the
        empty prompt. Of several texts one after another, each has states of its own; texts of fewer
        than `LONG_TEXT` states are not worth it.
        """
        if len(self.segments) > 1 or self.text_length < LONG_TEXT:
            return False
        whole = self.empty_states.float()
        few = whole[:, : min(4, whole.shape[1] - 1)]
        try:
            alone = self.first([""], few.shape[1]).float()
        except ErasureError:
            return False
        tolerance = 1e-4 if self.empty_states.dtype == torch.float32 else 0.02
        return alone.shape == few.shape and bool((alone - few).norm() <= tolerance * few.norm())

    def longest(self, prompts: Sequence[str]) -> int:
        """Number of tokens of the longest of the prompts."""
        return max(map(len, self.tokenizer(list(prompts), truncation=True).input_ids))

    @torch.no_grad()
    def first(self, prompts: Sequence[str], length: int) -> Tensor:
        """The first `length` states of prompts that have no more tokens; see `ends_early`."""
        return self._states(ending_at(self.source, length), prompts)

    def text_fingerprint(self, prompt: str) -> list[float]:
        """Eight numbers of a prompt's mean state, to recognise a text encoder by."""
        first: list[float] = self.encode([prompt])[0].float().mean(0)[:8].tolist()
        return [round(value, 4) for value in first]

    @property
    def untrainable(self) -> str:
        """Why no eraser can be trained on this model; empty if one can."""
        row = self.architecture
        if self.found is None or row is None or not row.trainable:
            return f"'{self.kind}' has no UNet to train on"
        config: Any = self.found.config
        embeds = (config.addition_embed_type, config.encoder_hid_dim_type, config.class_embed_type)
        prompt_is_enough = (
            config.in_channels == config.out_channels
            and not any(embeds)
            and not unusual_text_path(self.found)
            and isinstance(config.sample_size, int)
        )
        return "" if prompt_is_enough else f"'{self.kind}' needs more than a prompt"

    def noise_predictor(
        self,
        adapter_disabled: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        precision: torch.dtype | None = None,
    ) -> Denoiser:
        """Noise predictions of the model as it is now, with its erasers.

        `adapter_disabled` is a context without the eraser in training; `precision` is autocast's.

        Raises:
            ErasureError: the model needs more than latents, times and text states.
        """
        row = self.architecture
        if row is None or not row.trainable or len(self.text_encoders) > 1:
            raise ErasureError(
                "Noise predictions need a pipeline of Stable Diffusion's kind, with a UNet and one "
                f"text encoder; got '{self.kind}'."
            )
        return Denoiser(self.denoiser, self.schedule, adapter_disabled, precision=precision)


def _first(source: Any, names: Sequence[str]) -> Any:
    """The first of these parts that the source has."""
    parts = (getattr(source, name, None) for name in names)
    return next((part for part in parts if part is not None), None)
