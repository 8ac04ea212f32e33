"""EraserAdapter: weights that erase concepts, and what they are for; loaded, saved, published."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn

from diffusers_erase.concepts import Concept, Kind
from diffusers_erase.eraser.config import CONFIG_NAME, ErasedConcept, EraserConfig, versions
from diffusers_erase.eraser.files import ours_in, ours_on, read, written
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.lora_formats import changes_in, factors_in, holds_lora
from diffusers_erase.eraser.payloads import PAYLOADS, Payload
from diffusers_erase.eraser.products import product_with
from diffusers_erase.eraser.safetensors_io import WHOLE_MODEL, opened
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.lowrank import compressed, split
from diffusers_erase.models.architectures import Factors, fingerprint
from diffusers_erase.models.model import Model
from diffusers_erase.storage.atomic import check_folder, whole_folder
from diffusers_erase.storage.hub import HubOptions, check_options, publish


@dataclass(frozen=True)
class EraserAdapter:
    """A low-rank change of a denoiser that erases concepts, with a config that describes it.

    A trained eraser is a LoRA. A closed-form one is a text map, which determines its change of
    every layer that reads the text, mostly with a LoRA as a copy for plain diffusers and user
    interfaces. A text map alone is portable: a few kB for every model with the same text encoder.
    """

    payloads: tuple[Payload, ...]
    """Its weights, at most one of each kind in `PAYLOADS`."""
    config: EraserConfig

    def __post_init__(self) -> None:
        names = tuple(payload.name for payload in self.payloads)
        order = tuple(name for name in PAYLOADS if name in names)
        if not names or len(order) != len(names):
            raise ErasureError(
                f"An eraser has one or more of {', '.join(PAYLOADS)}, each once; got "
                f"{', '.join(names) or 'none'}."
            )
        by_name = dict(zip(names, self.payloads, strict=True))
        object.__setattr__(self, "payloads", tuple(by_name[name] for name in order))
        if order != self.config.payloads:
            object.__setattr__(self, "config", replace(self.config, payloads=order))

    @property
    def source(self) -> Payload:
        """The payload that acts; those before it in `payloads` are copies of its change."""
        return self.payloads[-1]

    @property
    def factors(self) -> Mapping[str, Factors]:
        """Path -> (A, B) of its LoRA, float32 on the CPU; empty without one."""
        return next((x.factors for x in self.payloads if isinstance(x, Lora)), {})

    @property
    def text_map(self) -> TextMap | None:
        """Its text map, if it has one."""
        return next((x for x in self.payloads if isinstance(x, TextMap)), None)

    @property
    def portable(self) -> "EraserAdapter":
        """The same eraser as a text map alone.

        Raises:
            ErasureError: it was trained, for one model, and has no text map.
        """
        if self.text_map is None:
            raise ErasureError(
                f"The eraser of '{self.config.title}' was trained for one model and has no text "
                "map; erasers made in closed form have one."
            )
        return replace(self, payloads=(self.text_map,))

    def paths(self, denoiser: nn.Module) -> tuple[str, ...]:
        """The layers of a denoiser that it changes."""
        return self.source.paths(denoiser)

    def pair(self, path: str, weight: Tensor) -> Factors:
        """A and B of one layer, on its weight's device; those of a text map are V^T and W U."""
        A, B = self.source.pair(path, product_with(weight))
        return A.to(weight.device), B.to(weight.device)

    def delta(self, path: str, weight: Tensor | None = None) -> Tensor:
        """B A, the change of a layer's weight W, in float32; that of its LoRA without a weight."""
        A, B = self.factors[path] if weight is None else self.pair(path, weight)
        return (B @ A).float()

    def check(self, denoiser: nn.Module) -> None:
        """Refuse, before anything is changed, a denoiser that this eraser was not made for.

        Raises:
            ErasureError: a layer is missing or has another shape, or would become infinite.
        """
        try:
            self.source.check(denoiser)
        except ErasureError as error:
            raise ErasureError(
                f"This eraser was made for {_describe(self.config.fingerprint)}; the pipeline has "
                f"{_describe(fingerprint(denoiser))}. {error}"
            ) from error

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        results: Mapping[str, Any] | None = None,
        images: Mapping[str, Image.Image] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Path:
        """Write the eraser (docs/format.md): its weights, `erasure_config.json` and a card.

        Plain `pipe.load_lora_weights(folder)` reads the LoRA too. The folder appears complete or
        not at all. The same eraser gives the same bytes.

        Args:
            folder: where to.
            overwrite: replace a former eraser there.
            results: measurements to add to those of the config, for config and card. Name ->
                `{"base": share, "erased": share, "n": pictures}`, perhaps with `low` and `high` of
                the difference's interval, or anything plain; names in `card.MEASURED` have a row.
            images: prompt -> picture drawn with the eraser, for the card.
            dtype: of the LoRA's numbers; in half precision it preserves protected prompts up to
                rounding only, while a text map always has float32. That of the config if omitted.

        Raises:
            ErasureError: the folder exists and `overwrite` is not set, it holds something else than
                an eraser, it cannot be written, or half precision does not hold the numbers.
        """
        folder = Path(folder).absolute()
        check_output(folder, overwrite=overwrite)
        files = written(self.payloads, self._with(results, dtype), folder.name, images)
        with whole_folder(folder) as draft:
            for path, content in files.items():
                (draft / path).parent.mkdir(exist_ok=True)
                (draft / path).write_bytes(content)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        results: Mapping[str, Any] | None = None,
        images: Mapping[str, Image.Image] | None = None,
        dtype: torch.dtype | None = None,
    ) -> str:
        """Publish on the Hub in one commit, in a new repository if need be; returns its address.

        Pushed again unchanged, it makes no commit.

        Args:
            repo_id: `user/name`.
            private: whether a new repository is.
            token: to write with; the one you are logged in with if omitted.
            create_pr: as a pull request.
            commit_message: if not the usual one.
            results: as for `save_pretrained`.
            images: as for `save_pretrained`.
            dtype: as for `save_pretrained`.

        Raises:
            ErasureError: the repository holds something else, or the Hub refuses or cannot be
                reached.
        """
        return publish(
            repo_id,
            written(self.payloads, self._with(results, dtype), repo_id, images),
            marker=CONFIG_NAME,
            stale=ours_on(repo_id),
            message=commit_message or f"Eraser for '{self.config.title}'"[:200],
            private=private,
            token=token,
            create_pr=create_pr,
        )

    def _with(self, results: Mapping[str, Any] | None, dtype: torch.dtype | None) -> EraserConfig:
        """The config with these results added, and with that type of numbers if one is given."""
        name = self.config.dtype if dtype is None else str(dtype).removeprefix("torch.")
        return replace(self.config, results={**self.config.results, **(results or {})}, dtype=name)

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub: Unpack[HubOptions]) -> "EraserAdapter":
        """Read an eraser from a folder, a file or the Hub.

        Args:
            source: a folder written by `save_pretrained`, one of the LoRA files in it, or a Hub id
                such as `user/erase-vangogh`.
            **hub: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
                `force_download`.

        Raises:
            ErasureError: nothing there, or not an eraser; safetensors only, nothing is executed.
        """
        check_options("from_pretrained", hub)
        return cls(*read(source, **hub)[:2])

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        concept: str,
        *,
        base: Any = None,
        rank: int | None = None,
        target: str | None = None,
        kind: Kind = "object",
    ) -> "EraserAdapter":
        """Make an eraser of a LoRA file, or of a denoiser's weights that were rewritten.

        Of weights W it is W - W0, split by SVD: exact at the numerical rank, or the best of a rank;
        `config.parameters["kept_energy"]` is the share of the change's energy that is kept.

        Args:
            path: a safetensors file: a LoRA that the pipeline can load, or a denoiser's weights,
                all of them or some, named as in diffusers.
            concept: what it erases.
            base: the pipeline, or its denoiser, with the original weights; for a LoRA it may be
                omitted, unless its keys name blocks as SDXL's original code does.
            rank: largest rank of a layer; as high as need be if omitted.
            target: what the concept is answered as, if that is known.
            kind: of concept.

        Raises:
            ErasureError: no such file, no base, another architecture, a change that no LoRA on
                linear layers can hold, or no change at all.
        """
        path = Path(path)
        model = None if base is None else Model.of(base)
        unet = model.denoiser if model else None
        file = opened(path, WHOLE_MODEL)
        odd = [key for key, x in file.tensors.items() if not torch.isfinite(x.float()).all()]
        if odd:
            raise ErasureError(f"'{path}' holds values in '{odd[0]}' that are not finite numbers.")
        if holds_lora(file):
            best = {p: compressed(*f, rank) for p, f in factors_in(file, model).items()}
        elif unet is None:
            raise ErasureError(
                f"'{path}' holds whole weights and no LoRA; pass the pipeline they were made from "
                "as `base`, to tell what was changed."
            )
        else:
            best = {p: split(D, rank) for p, D in changes_in(file, unet).items()}
        if not any((B @ A).any() for A, B, _ in best.values()):
            raise ErasureError(f"'{path}' changes nothing: it erases nothing.")
        lora, kept = Lora.of(best)
        config = EraserConfig(
            (ErasedConcept.of(Concept(concept, kind), target),),
            recipe="imported",
            parameters={"file": path.name, "kept_energy": kept},
            base_model=model.name if model else "",
            fingerprint=fingerprint(unet) if unet else {},
            rank=lora.rank,
            versions=versions(),
        )
        eraser = cls((lora,), config)
        if unet is not None:
            eraser.check(unet)
        return eraser


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder an eraser cannot or must not be saved to, before work is spent on it.

    Raises:
        ErasureError: it exists without `overwrite`, holds something else than an eraser, or
            cannot be written.
    """
    check_folder(folder, overwrite=overwrite, marker=CONFIG_NAME, known=ours_in(folder))


def _describe(found: Mapping[str, Any]) -> str:
    if not found:
        return "a model that was not recorded"
    return (
        f"a {found.get('denoiser', '?')} with text width {found.get('text_width', '?')} "
        f"and {found.get('cross_attention_layers', '?')} cross-attention layers"
    )
