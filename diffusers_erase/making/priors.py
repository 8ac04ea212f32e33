"""Statistics of a text encoder as a file, which its users find by its fingerprint and share."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from huggingface_hub import ModelCardData
from torch import Tensor

from diffusers_erase.editing.own_prompts import (
    OwnStatistics,
    own_pairs,
    own_words,
    settings,
)
from diffusers_erase.editing.texts import Texts, texts_of
from diffusers_erase.eraser.card import as_text, literal
from diffusers_erase.eraser.config import versions
from diffusers_erase.eraser.safetensors_io import Opened, opened, serialized
from diffusers_erase.eraser.schema import read_json
from diffusers_erase.errors import ErasureError
from diffusers_erase.making.request import require_erasable
from diffusers_erase.models.encoder_fingerprint import EncoderFingerprint
from diffusers_erase.models.model import Model
from diffusers_erase.storage.atomic import whole_file
from diffusers_erase.storage.hub import HubOptions, is_hub_id, local_folder, publish, snapshot
from diffusers_erase.storage.tensor_cache import digest


PATTERN = "prior-*.safetensors"
"""Names of files of statistics, wherever they lie."""

FORMAT = "1.0"
"""Of such a file: docs/format.md."""

TAG = "diffusers-erase-prior"
"""The tag by which statistics are found on the Hub."""


@dataclass(frozen=True)
class TextPrior:
    """The statistics of general prompts for one text encoder: erasers keep these prompts.

    `erase` encodes some 2,000 prompts for them, or takes them from a file.
    """

    statistics: OwnStatistics
    encoder: EncoderFingerprint
    settings: Mapping[str, Any]
    """Templates and numbers that they were made with."""
    model: str
    """The Hub id, or folder's name, of the pipeline they were made with."""
    versions: Mapping[str, str]
    source: str = ""
    """What they were read from: a Hub id and its commit, or a file's name."""

    @classmethod
    def of(cls, pipe: Any, texts: Texts | None = None) -> "TextPrior":
        """Encode the general prompts with a pipeline's text encoders; the denoiser is not run.

        Args:
            pipe: a pipeline, or its `Model`.
            texts: its texts, if some are encoded already.

        Raises:
            ErasureError: prompts cannot be encoded, or a text encoder has adapters loaded.
        """
        model = Model.of(pipe)
        require_erasable(model)
        encoder, made = EncoderFingerprint.of(model), OwnStatistics.of(texts or texts_of(model))
        return cls(made, encoder, settings(), model.name, versions())

    @property
    def name(self) -> str:
        """The name of its file."""
        return PATTERN.replace("*", self.encoder.weights[0][:16])

    @property
    def content(self) -> bytes:
        """Its file: the same statistics, the same bytes."""
        tensors = {"grams": self.statistics.grams, "endings": self.statistics.endings}
        about = {
            "format": FORMAT,
            "model": self.model,
            "encoder": asdict(self.encoder),
            "words": self.statistics.words,
            "prompts": len(self.statistics.endings),
            "settings": self.settings,
            "versions": self.versions,
            "digest": digest(*tensors.values()),
        }
        return serialized(tensors, {"prior": json.dumps(about)})

    def save(self, folder: str | Path) -> Path:
        """Write its file into a folder, where it replaces a former one of this text encoder.

        Raises:
            ErasureError: the folder cannot be written.
        """
        path = Path(folder) / self.name
        try:
            with whole_file(path) as draft:
                draft.write_bytes(self.content)
        except OSError as error:
            raise ErasureError(f"Cannot write to '{folder}': {error.strerror or error}.") from error
        return path

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Publish it with a card, in a repository for it alone; returns its address.

        Pushed again unchanged, it makes no commit.

        Raises:
            ErasureError: the repository holds something else, or the Hub refuses or cannot be
                reached.
        """
        return publish(
            repo_id,
            {self.name: self.content, "README.md": self._card(repo_id).encode()},
            marker=PATTERN,
            stale=(PATTERN,),
            message=f"Statistics of the text encoder of '{self.model}'"[:200],
            private=private,
            token=token,
        )

    def _card(self, repo_id: str) -> str:
        published = is_hub_id(self.model)
        header = ModelCardData(
            base_model=self.model if published else None,
            base_model_relation="adapter" if published else None,
            library_name="diffusers",
            tags=[TAG, "concept-erasure", "text-encoder"],
        )
        length, width = self.encoder.states
        return f"""---
{header.to_yaml()}
---

# {as_text(repo_id)}: statistics of a text encoder

Second moments of the text states of {len(own_pairs(self.statistics.words)):,} general prompts, as
the text encoder of {as_text(self.model or "a model without a name")} encodes them ({length} states
of width {width}). With them `diffusers_erase` makes an eraser in closed form without encoding these
prompts:

```python
from diffusers_erase import erase

eraser = erase(pipe, "car", recipe="closed-form", prior={literal(repo_id)})
```

They are for every pipeline with the same text encoder, in any precision, and refused by others.
There is nothing in them but numbers (safetensors), words and templates.
Made with {as_text(", ".join(f"{name} {version}" for name, version in self.versions.items()))}.
"""

    @classmethod
    def from_pretrained(
        cls, pipe: Any, source: str | Path, **hub: Unpack[HubOptions]
    ) -> "TextPrior":
        """Read those of a pipeline's text encoder from a file, a folder or the Hub.

        Raises:
            ErasureError: there are none, a file is damaged, or all are of other text encoders or
                of prompts that this version does not take.
        """
        model = Model.of(pipe)
        require_erasable(model)
        found, refused = _fitting(model, source, **hub)
        if found is None:
            raise ErasureError(refused[0])
        return found


def prior_in(folder: Path, model: Model) -> TextPrior | None:
    """The statistics in a folder that fit a model; None if none do.

    Raises:
        ErasureError: a file is damaged.
    """
    return _fitting(model, folder)[0] if any(folder.glob(PATTERN)) else None


def _fitting(
    model: Model, source: str | Path, **hub: Unpack[HubOptions]
) -> tuple[TextPrior | None, list[str]]:
    """The first statistics of a source that fit the model, and why those before it do not.

    Raises:
        ErasureError: there are no statistics at all, or a file is damaged.
    """
    path = local_folder(source)
    if path is not None and path.is_file():
        files, known = [path], path.name
    else:
        found = snapshot(source, [PATTERN], **hub)
        files = sorted(found.folder.glob(PATTERN))
        known = f"{source} ({found.commit[:12]})" if found.commit else ""
    if not files:
        raise ErasureError(
            f"'{source}' holds no statistics of a text encoder ({PATTERN}); make them with "
            "`diffusers-erase prior`."
        )
    own, refused = EncoderFingerprint.of(model), list[str]()
    for file in files:
        prior = _read(file)
        problem = _problem(prior, own, model)
        if not problem:
            return replace(prior, source=known or file.name), refused
        refused.append(f"The statistics in '{source}' {problem}")
    return None, refused


def _problem(prior: TextPrior, own: EncoderFingerprint, model: Model) -> str:
    """Why statistics do not fit a model, as the end of a sentence; empty if they do."""
    again = "make them anew with `diffusers-erase prior`"
    difference = prior.encoder.difference(own)
    if difference:
        length, width = prior.encoder.states
        return (
            f"are of the text encoder of '{prior.model}' ({length} states of width {width}), and "
            f"that of '{model.name or model.kind}' {difference}; {again} for this model, or leave "
            "out `prior`."
        )
    kept, words = prior.statistics, own_words(model.tokenizer)
    count = len(own_pairs(words))
    if (prior.settings, kept.words, len(kept.endings)) != (settings(), words, count):
        made = prior.versions.get("diffusers-erase", "another version")
        return f"are of other prompts than this version takes (made with {made}); {again}."
    return ""


def _read(path: Path) -> TextPrior:
    """Read statistics from a file.

    Raises:
        ErasureError: it is damaged, holds something else, or is of a newer format.
    """
    try:
        file = opened(path)
        about = read_json(file.header["prior"], path)
        if str(about["format"]).split(".")[0] != FORMAT.split(".")[0]:
            raise ValueError(f"its format is {about['format']}, and this version reads {FORMAT}")
        encoder = EncoderFingerprint.from_dict(about["encoder"])
        words = tuple(map(str, about["words"]))
        prior = TextPrior(
            OwnStatistics(words, *_tensors(file, encoder.states[1], about)),
            encoder,
            dict(about["settings"]),
            str(about["model"]),
            {str(name): str(version) for name, version in about["versions"].items()},
        )
    except (ErasureError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ErasureError(
            f"'{path}' cannot be read as statistics of a text encoder: {reason}. Fetch it again, "
            "or delete it and make it anew with `diffusers-erase prior`."
        ) from error
    return prior


def _tensors(file: Opened, width: int, about: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The Gram matrices and the endings, as the header announces them."""
    made = about["settings"]
    triangles = (len(made["templates"]), width * (width + 1) // 2)
    expected = {
        "grams": (triangles, torch.float32),
        "endings": ((about["prompts"], made["ending"], width), torch.float16),
    }
    for name, (shape, dtype) in expected.items():
        tensor = file.tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"`{name}` is {list(tensor.shape)} and not {list(shape)} {dtype}")
    grams, endings = file.tensors["grams"], file.tensors["endings"]
    if digest(grams, endings) != about["digest"]:
        raise ValueError("its numbers are not those that were written")
    if not (torch.isfinite(grams).all() and torch.isfinite(endings).all()):
        raise ValueError("it holds numbers that are not finite")
    return grams, endings
