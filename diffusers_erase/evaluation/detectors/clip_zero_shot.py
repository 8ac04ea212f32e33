"""Zero-shot classification by CLIP or SigLIP."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import Detection
from diffusers_erase.evaluation.detectors.pretrained import (
    describe,
    load,
    ranked,
    require_eval_mode,
    short_name,
)
from diffusers_erase.storage.tensor_cache import digest


@dataclass(frozen=True)
class ClipZeroShot:
    """softmax( s cos(E(picture), E(prompt)) ) over the prompts of the labels and those of `none`.

    The verdict is the likeliest label. It is not valid where that is a prompt of `none`, or where
    its probability is below the threshold. Choose labels that are hard to tell apart: the concept,
    its neighbours and the word above them. The concept alone against `none` is found too often.
    """

    model: Any
    """CLIP or SigLIP, in eval mode."""
    processor: Any
    """The model's image processor."""
    tokenizer: Any
    labels: tuple[str, ...]
    template: str = "a photo of a {}"
    """The prompt of a label, which replaces `{}`."""
    none: tuple[str, ...] = ("none of these",)
    """Whole prompts for everything else; with () one of the labels is always chosen."""
    threshold: float = 0.0
    """Least probability of a valid verdict; the more labels, the less is left for each."""
    name: str = ""
    batch: int = 32
    """Pictures per forward pass."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "none", tuple(self.none))
        if not isinstance(getattr(self.model, "logit_scale", None), Tensor):
            raise ErasureError(
                f"{type(self.model).__name__} does not compare pictures with texts; zero-shot "
                "detection needs a CLIP or SigLIP."
            )
        require_eval_mode(self.model)
        if "{}" not in self.template:
            raise ErasureError(f"The template '{self.template}' has no {{}} for the label.")
        if not self.labels or len(self.labels + self.none) < 2:
            raise ErasureError(
                f"Zero-shot detection needs two labels or more; got {self.labels + self.none}. "
                "Name the concept and what else a picture may show."
            )
        counts = Counter(label.casefold() for label in self.labels + self.none)
        if repeated := [label for label, count in counts.items() if count > 1]:
            raise ErasureError(f"The label '{repeated[0]}' is given twice; name it once.")

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        labels: Sequence[str],
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> "ClipZeroShot":
        """Load a detector from the Hub, the cache or a folder; safetensors only.

        Args:
            model_id: such as `openai/clip-vit-base-patch32`.
            labels: what a picture may show.
            revision: commit, branch or tag.
            device: of the model.
            options: template, none, threshold, batch.

        Raises:
            ErasureError: it cannot be loaded, or is neither CLIP nor SigLIP.
        """
        model = load(
            transformers.AutoModel, model_id, revision, use_safetensors=True, dtype=torch.float32
        )
        processor = load(transformers.AutoImageProcessor, model_id, revision, backend="pil")
        tokenizer = load(transformers.AutoTokenizer, model_id, revision)
        name = short_name(model_id)
        return cls(model.to(device), processor, tokenizer, tuple(labels), name=name, **options)

    @property
    def info(self) -> Mapping[str, Any]:
        """All that the verdicts depend on."""
        return {
            **describe(self.model, self.processor, self.name, self._weights),
            "classes": list(self.labels),
            "none": list(self.none),
            "template": self.template,
            "threshold": self.threshold,
        }

    @torch.no_grad()
    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures x (labels, then none); each row sums to one."""
        rows = []
        for start in range(0, len(pictures), self.batch):
            chunk = [picture.convert("RGB") for picture in pictures[start : start + self.batch]]
            pixels = self.processor(images=chunk, return_tensors="pt")
            pixels = pixels.to(self.model.device, self.model.dtype)
            logits = self.model(input_ids=self._prompts, **pixels).logits_per_image
            rows.append(logits.double().softmax(1).cpu())
        return torch.cat(rows)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Detection]:
        """One verdict per picture; `ranked` has the prompts of `none` among the labels."""
        if not pictures:
            return []
        labels = self.labels + self.none
        return [ranked(row, labels, self._is_valid) for row in self.probabilities(pictures)]

    def _is_valid(self, label: str, score: float) -> bool:
        return label not in self.none and score >= self.threshold

    @cached_property
    def _prompts(self) -> Tensor:
        """Token ids, padded to the model's length, with which SigLIP was trained."""
        prompts = [self.template.replace("{}", label) for label in self.labels] + list(self.none)
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(prompts, padding="max_length", max_length=length).input_ids
        for prompt, tokens in zip(prompts, ids, strict=True):
            if len(tokens) > length:
                raise ErasureError(
                    f"The prompt '{prompt}' has {len(tokens)} tokens and the model reads {length}; "
                    "shorten the label."
                )
        return torch.tensor(ids, device=self.model.device)

    @cached_property
    def _weights(self) -> str:
        return digest(self.model)
