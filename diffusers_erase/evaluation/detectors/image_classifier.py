"""Image classifiers of the Hub, such as those of ImageNet's classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

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
class ImageClassifier:
    """softmax over all classes of an image classifier; the verdict is the likeliest.

    A class is named by its first synonym ("tench" for "tench, Tinca tinca"), by all of them where
    two classes share the first, and by its number too where they share all ("crane (134)").
    """

    model: Any
    """The network in eval mode, with one class per picture."""
    processor: Any
    """The model's image processor."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Other names of classes, by class number."""
    threshold: float = 0.0
    """Least probability of a valid verdict. These models have no class "none of these"."""
    name: str = ""
    batch: int = 32
    """Pictures per forward pass."""

    def __post_init__(self) -> None:
        require_eval_mode(self.model)
        if self.model.config.problem_type == "multi_label_classification":
            raise ErasureError(
                f"{self.name or type(self.model).__name__} gives a picture several classes; an "
                "ImageClassifier needs one class per picture."
            )
        count = len(self.model.config.id2label)
        if unknown := [number for number in self.names if not 0 <= number < count]:
            raise ErasureError(f"No class {unknown[0]} to name; the model has {count}.")
        if repeated := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise ErasureError(f"Two classes are named '{repeated[0]}'; rename one of them.")

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        names: Sequence[str] | Mapping[int, str] = (),
        revision: str | None = None,
        device: str | torch.device = "cpu",
        **options: Any,
    ) -> "ImageClassifier":
        """Load a detector from the Hub, the cache or a folder; safetensors only.

        Args:
            model_id: such as `microsoft/resnet-50`.
            names: names for classes, by class number; or synonyms that one class each has
                ("saxophone" for "sax, saxophone"), in upper or lower case.
            revision: commit, branch or tag.
            device: of the model.
            options: threshold, batch.

        Raises:
            ErasureError: it cannot be loaded, or a name belongs to no class or to several.
        """
        kind = transformers.AutoModelForImageClassification
        model = load(kind, model_id, revision, use_safetensors=True, dtype=torch.float32)
        processor = load(transformers.AutoImageProcessor, model_id, revision, backend="pil")
        if not isinstance(names, Mapping):
            names = {class_number(model.config.id2label, name): name for name in names}
        return cls(model.to(device), processor, names, name=short_name(model_id), **options)

    @property
    def info(self) -> Mapping[str, Any]:
        """All that the verdicts depend on."""
        return {
            **describe(self.model, self.processor, self.name, self._weights),
            "classes": list(self.classes),
            "threshold": self.threshold,
        }

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        id2label = self.model.config.id2label
        labels = [str(id2label[number]) for number in range(len(id2label))]
        first = [label.split(",")[0].strip() for label in labels]
        of_first, of_label = Counter(first), Counter(labels)
        return tuple(
            self.names.get(i)
            or (a if of_first[a] == 1 else b if of_label[b] == 1 else f"{b} ({i})")
            for i, (a, b) in enumerate(zip(first, labels, strict=True))
        )

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[Detection]:
        """One verdict per picture."""
        verdicts: list[Detection] = []
        for start in range(0, len(pictures), self.batch):
            chunk = [picture.convert("RGB") for picture in pictures[start : start + self.batch]]
            pixels = self.processor(images=chunk, return_tensors="pt")
            logits = self.model(**pixels.to(self.model.device, self.model.dtype)).logits
            verdicts += [
                ranked(row, self.classes, lambda label, score: score >= self.threshold)
                for row in logits.double().cpu().softmax(1)
            ]
        return verdicts

    @cached_property
    def _weights(self) -> str:
        return digest(self.model)


def class_number(classes: Mapping[int, str], name: str) -> int:
    """The number of the one class with this synonym, whole and in upper or lower case."""
    synonyms = {
        number: {part.strip().casefold() for part in (*label.split(","), label)}
        for number, label in classes.items()
    }
    numbers = [number for number, names in synonyms.items() if name.strip().casefold() in names]
    if not numbers:
        near = get_close_matches(name.casefold(), sorted(set().union(*synonyms.values())), 3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ErasureError(f"None of the classifier's classes is '{name}'.{hint}")
    if len(numbers) > 1:
        raise ErasureError(
            f"'{name}' is class {' and class '.join(map(str, numbers))}; name them by number: "
            f"names={{{numbers[0]}: '{name}'}}."
        )
    return numbers[0]
