"""EraserAdapter, the waist of the house: a LoRA on cross-attention and what it erases."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn

from diffusers_erase.concepts import Concept, Kind
from diffusers_erase.eraser.config import (
    CONFIG_NAME,
    PAYLOADS,
    ErasedConcept,
    EraserConfig,
    versions,
)
from diffusers_erase.eraser.files import Content, ours_in, ours_on, read, written
from diffusers_erase.eraser.lora_formats import changes_in, factors_in, holds_lora
from diffusers_erase.eraser.safetensors_io import WHOLE_MODEL, opened
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.lowrank import compressed, split
from diffusers_erase.models.architectures import (
    Factors,
    fingerprint,
    linear,
    text_layers,
)
from diffusers_erase.models.model import Model
from diffusers_erase.storage.atomic import check_folder, whole_folder
from diffusers_erase.storage.hub import HubOptions, check_options, publish


@dataclass(frozen=True)
class EraserAdapter:
    """Low-rank changes to a denoiser's cross-attention that erase a concept.

    `factors` maps a layer's path to (A, B), float32 on the CPU. An eraser made in closed form has a
    `text_map` too, from which its change to any layer that reads the text follows; one with a text
    map alone is portable: a few kB for every model with the same text encoder.
    """

    factors: Mapping[str, Factors]
    config: EraserConfig
    text_map: TextMap | None = None

    def __post_init__(self) -> None:
        if not self.factors and self.text_map is None:
            raise ErasureError("The eraser has no LoRA weights.")
        for path, (A, B) in self.factors.items():
            if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or not len(A):
                raise ErasureError(
                    f"LoRA factors of '{path}' do not fit each other: {_shape(A)} and {_shape(B)}."
                )
            if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
                raise ErasureError(
                    f"LoRA factors of '{path}' hold values that are not finite numbers."
                )
        there = {"lora": bool(self.factors), "text_map": self.text_map is not None}
        payloads = tuple(name for name in PAYLOADS if there[name])
        if payloads != self.config.payloads:
            object.__setattr__(self, "config", replace(self.config, payloads=payloads))

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
        return EraserAdapter({}, self.config, self.text_map)

    def paths(self, unet: nn.Module) -> tuple[str, ...]:
        """The layers of a denoiser that it changes."""
        return tuple(self.factors if self.text_map is None else text_layers(unet))

    def pair(self, path: str, weight: Tensor | None = None) -> Factors:
        """A and B of one layer, on the weight's device; those of a text map are V^T and W U."""
        if self.text_map is not None and weight is not None:
            W = weight.detach()
            wide = torch.promote_types(W.dtype, torch.float32)
            U, V = (x.to(W.device, wide) for x in (self.text_map.U, self.text_map.V))
            return V.T, W.to(wide) @ U
        A, B = self.factors[path]
        return (A, B) if weight is None else (A.to(weight.device), B.to(weight.device))

    def delta(self, path: str, weight: Tensor | None = None) -> Tensor:
        """What is added to a layer's weight W, in float32: B A, or W P for a text map."""
        A, B = self.pair(path, weight)
        return (B @ A).float()

    def check(self, unet: nn.Module) -> None:
        """Refuse, before anything is changed, a denoiser that this eraser was not made for.

        Raises:
            ErasureError: a layer is missing or has another shape.
        """
        if self.text_map is not None:
            self._check_width(unet, self.text_map.width)
            return
        for path, (A, B) in self.factors.items():
            try:
                layer = linear(unet, path)
                there: tuple[int, ...] = (layer.out_features, layer.in_features)
            except ErasureError:
                there = ()
            if there != (len(B), A.shape[1]):
                raise ErasureError(
                    f"This eraser was made for {_describe(self.config.fingerprint)}; "
                    f"the pipeline has {_describe(fingerprint(unet))}. "
                    f"'{path}' should be {len(B)} x {A.shape[1]} and is "
                    f"{' x '.join(map(str, there)) or 'missing'}."
                )

    def _check_width(self, unet: nn.Module, width: int) -> None:
        read = {layer.in_features for layer in text_layers(unet).values()}
        if read != {width}:
            raise ErasureError(
                f"This eraser maps text states of width {width}; the pipeline has "
                f"{_describe(fingerprint(unet))}: it was made for another text encoder."
            )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        results: Mapping[str, Any] | None = None,
        images: Mapping[str, Image.Image] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Path:
        """Write the eraser as docs/format.md says: two LoRA files, `erasure_config.json`, a card.

        Plain `pipe.load_lora_weights(folder)` reads the result too. An eraser with a text map
        leaves `text_map.safetensors` beside it, a portable one nothing else. All or nothing: the
        folder appears complete. The same eraser gives the same bytes.

        Args:
            folder: where to.
            overwrite: replace a former eraser there.
            results: what was measured, for config and card; those of the config if omitted. Name ->
                `{"base": share, "erased": share, "n": pictures}`, perhaps with `low` and `high` of
                the difference's interval, or anything plain; names in `card.MEASURED` have a row.
            images: prompt -> picture drawn with the eraser, for the card.
            dtype: of the LoRA's numbers; half precision halves the file, and leaves of an exact
                null-prompt constraint what rounding leaves. As it was loaded if omitted, float32
                if it was made here.

        Raises:
            ErasureError: the folder exists and `overwrite` is not set, it holds something else than
                an eraser, it cannot be written, or half precision does not hold the numbers.
        """
        folder = Path(folder).absolute()
        check_output(folder, overwrite=overwrite)
        files = written(self._content(results, dtype), folder.name, images)
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
        """Publish on the Hub, in a new repository if need be; the address of commit or request.

        One commit with everything in it, or none. Pushed again unchanged, it makes no commit.

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
            written(self._content(results, dtype), repo_id, images),
            marker=CONFIG_NAME,
            stale=ours_on(repo_id),
            message=commit_message or f"Eraser for '{self.config.title}'"[:200],
            private=private,
            token=token,
            create_pr=create_pr,
        )

    def _content(self, results: Mapping[str, Any] | None, dtype: torch.dtype | None) -> Content:
        """With these results and numbers of that type, where they are given."""
        changed: dict[str, Any] = {} if results is None else {"results": dict(results)}
        changed |= {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
        return Content(self.factors, replace(self.config, **changed), self.text_map)

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
        content = read(source, **hub)
        return cls(content.factors, content.config, content.text_map)

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
        """An eraser out of what somebody else left: a LoRA file, or weights that were rewritten.

        Of whole weights it is W - W0, split by SVD: exact at the numerical rank, or the best of a
        rank; `config.parameters["kept_energy"]` is the share of the change's energy that is kept.

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
        unet = None if model is None else model.denoiser
        file = opened(path, WHOLE_MODEL)
        odd = [key for key, x in file.tensors.items() if not torch.isfinite(x.float()).all()]
        if odd:
            raise ErasureError(f"'{path}' holds values in '{odd[0]}' that are not finite numbers.")
        if holds_lora(file):
            split_up = {p: compressed(*f, rank) for p, f in factors_in(file, model).items()}
        elif unet is None:
            raise ErasureError(
                f"'{path}' holds whole weights and no LoRA; pass the pipeline they were made from "
                "as `base`, to tell what was changed."
            )
        else:
            split_up = {p: split(D, rank) for p, D in changes_in(file, unet).items()}
        energy = {p: float((B @ A).square().sum()) for p, (A, B, _) in split_up.items()}
        all_of_it = sum(energy[p] / kept for p, (_, _, kept) in split_up.items())
        if not all_of_it:
            raise ErasureError(f"'{path}' changes nothing: it erases nothing.")
        config = EraserConfig(
            (ErasedConcept.of(Concept(concept, kind), target),),
            recipe="imported",
            parameters={"file": path.name, "kept_energy": sum(energy.values()) / all_of_it},
            base_model=model.name if model else "",
            fingerprint=fingerprint(unet) if unet else {},
            rank=max(len(A) for A, _, _ in split_up.values()),
            versions=versions(),
        )
        eraser = cls({p: (A, B) for p, (A, B, _) in split_up.items()}, config)
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


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _describe(found: Mapping[str, Any]) -> str:
    if not found:
        return "a model that was not recorded"
    return (
        f"a {found.get('denoiser', '?')} with text width {found.get('text_width', '?')} "
        f"and {found.get('cross_attention_layers', '?')} cross-attention layers"
    )
