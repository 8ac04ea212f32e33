"""EraserAdapter, the waist of the house: a LoRA on cross-attention and what it erases."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusers_erase.card import model_card
from diffusers_erase.config import CONFIG_NAME, EraserConfig, versions
from diffusers_erase.crossattention import (
    Factors,
    component,
    denoiser_of,
    fingerprint,
    linear,
    text_layers,
)
from diffusers_erase.errors import ErasureError
from diffusers_erase.folders import check_folder, whole_folder
from diffusers_erase.hub import HubOptions, check_options, fetch
from diffusers_erase.layouts import (
    Opened,
    changes_in,
    factors_in,
    header_of,
    holds_lora,
    kohya_keys,
    opened,
    peft_keys,
)
from diffusers_erase.lowrank import compressed, split
from diffusers_erase.textmap import TextMap


WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
MAP_NAME = "text_map.safetensors"

_NO_ERASER = (
    "it is a LoRA, but no eraser. `EraserAdapter.from_checkpoint(file, concept)` makes one of it."
)


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
            if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
                raise ErasureError(
                    f"LoRA factors of '{path}' do not fit each other: {_shape(A)} and {_shape(B)}."
                )
            if not (torch.isfinite(A).all() and torch.isfinite(B).all()):
                raise ErasureError(
                    f"LoRA factors of '{path}' hold values that are not finite numbers."
                )

    @property
    def portable(self) -> "EraserAdapter":
        """The same eraser as a text map alone.

        Raises:
            ErasureError: it was trained, for one model, and has no text map.
        """
        if self.text_map is None:
            raise ErasureError(
                f"The eraser of '{self.config.concept}' was trained for one model and has no text "
                "map; erasers made in closed form have one."
            )
        return EraserAdapter({}, replace(self.config, payloads=("text_map",)), self.text_map)

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

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `pytorch_lora_weights.safetensors`, `erasure_config.json` and a model card.

        Plain `pipe.load_lora_weights(folder)` reads the result too. An eraser with a text map
        leaves `text_map.safetensors` beside it, a portable one nothing else. All or nothing: the
        folder appears complete.

        Raises:
            ErasureError: the folder exists and `overwrite` is not set, it holds something else than
                an eraser, or it cannot be written.
        """
        folder = Path(folder).absolute()
        check_output(folder, overwrite=overwrite)
        with whole_folder(folder) as draft:
            self._write(draft, folder.name)
        return folder

    def _write(self, folder: Path, repo_id: str) -> None:
        content = self.config.to_dict()
        if self.factors:
            self._write_lora(folder, _file_name(repo_id), content)
        if self.text_map is not None:
            pair = {"U": self.text_map.U.float(), "V": self.text_map.V.float()}
            contiguous = {name: value.contiguous() for name, value in pair.items()}
            save_file(contiguous, folder / MAP_NAME)
        (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(model_card(content, repo_id), encoding="utf-8")

    def _write_lora(self, folder: Path, name: str, content: Mapping[str, Any]) -> None:
        part = component(str(self.config.fingerprint.get("denoiser", "")))
        story = {"format": "pt", "erasure": json.dumps(content)}
        tensors, lora = peft_keys(self.factors, part)
        save_file(tensors, folder / WEIGHTS_NAME, {**story, "lora_adapter_metadata": lora})
        if part == "unet":  # of transformers, everyone's user interface names the layers otherwise
            tensors, header = kohya_keys(self.factors)
            title = {"modelspec.title": f"Erases {self.config.concept}"}
            save_file(tensors, folder / f"{name}.safetensors", {**header, **title, **story})

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
        if Path(source).is_file():
            return cls._from_file(opened(Path(source)))
        try:
            content = json.loads(fetch(source, CONFIG_NAME, **hub).read_text(encoding="utf-8"))
        except ErasureError:
            content = {}
        except ValueError as error:
            raise ErasureError(f"'{source}' holds a broken {CONFIG_NAME}: {error}.") from error
        known = EraserConfig.from_dict(content) if content else None
        payloads = known.payloads if known else ("lora",)
        factors: dict[str, Factors] = {}
        header: dict[str, Any] = {}
        if "lora" in payloads:
            file = opened(fetch(source, WEIGHTS_NAME, **hub))
            factors, header = factors_in(file), _story(file)
        if known is None and not header:
            raise ErasureError(f"'{source}' holds no {CONFIG_NAME}: {_NO_ERASER}")
        known = known or EraserConfig.from_dict(header)
        mapped = "text_map" in known.payloads
        return cls(factors, known, _read_map(fetch(source, MAP_NAME, **hub)) if mapped else None)

    @classmethod
    def _from_file(cls, file: Opened) -> "EraserAdapter":
        story = _story(file)
        if not story:
            raise ErasureError(f"'{file.path}' tells nothing of an erasure: {_NO_ERASER}")
        config = EraserConfig.from_dict(story)
        return cls(factors_in(file), replace(config, payloads=("lora",)))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        concept: str,
        *,
        base: Any = None,
        rank: int | None = None,
        target: str | None = None,
        kind: str = "object",
    ) -> "EraserAdapter":
        """An eraser out of what somebody else left: a LoRA file, or weights that were rewritten.

        Of whole weights it is W - W0, split by SVD: exact at the numerical rank, or the best of a
        rank; `config.parameters["kept_energy"]` is the share of the change's energy that is kept.

        Args:
            path: a safetensors file: a LoRA with the keys of peft, diffusers or kohya, or a
                denoiser's weights, all of them or some, named as in diffusers.
            concept: what it erases.
            base: the pipeline, or its denoiser, with the original weights; for a LoRA it may be
                omitted.
            rank: largest rank of a layer; as high as need be if omitted.
            target: what the concept is answered as, if that is known.
            kind: of concept.

        Raises:
            ErasureError: no such file, no base, another architecture, a change that no LoRA on
                linear layers can hold, or no change at all.
        """
        path = Path(path)
        if not path.is_file():
            raise ErasureError(f"There is no file '{path}'.")
        unet = None if base is None else denoiser_of(base)
        file = opened(path)
        odd = [key for key, value in file.tensors.items() if not torch.isfinite(value).all()]
        if odd:
            raise ErasureError(f"'{path}' holds values in '{odd[0]}' that are not finite numbers.")
        if holds_lora(file):
            known = [p for p, m in unet.named_modules() if isinstance(m, nn.Linear)] if unet else ()
            split_up = {p: compressed(*f, rank) for p, f in factors_in(file, known).items()}
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
            concept,
            kind=kind,
            target=target,
            recipe="imported",
            parameters={"file": path.name, "kept_energy": sum(energy.values()) / all_of_it},
            base_model=str(getattr(base, "name_or_path", "") or ""),
            fingerprint=fingerprint(unet) if unet else {},
            rank=max(len(A) for A, _, _ in split_up.values()),
            versions=versions(),
        )
        eraser = cls({p: (A, B) for p, (A, B, _) in split_up.items()}, config)
        if unet is not None:
            eraser.check(unet)
        return eraser

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Publish on the Hub, in a new repository if need be, and return the commit's address."""
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder), repo)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=commit_message or f"Eraser for '{self.config.concept}'",
                create_pr=create_pr,
            )
        return str(commit.commit_url)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder an eraser cannot or must not be saved to, before work is spent on it.

    Raises:
        ErasureError: it exists without `overwrite`, holds something else than an eraser, or
            cannot be written.
    """
    known = (WEIGHTS_NAME, MAP_NAME, "README.md", *_our_files(folder))
    check_folder(folder, overwrite=overwrite, marker=CONFIG_NAME, known=known)


def _our_files(folder: Path) -> list[str]:
    """LoRA files in a folder whose header tells of an erasure, whatever they are called."""
    found = folder.glob("*.safetensors") if folder.is_dir() else ()
    return [path.name for path in found if "erasure" in header_of(path)]


def _file_name(repo_id: str) -> str:
    """What the second LoRA file is called, without its ending: as the repository, or nearly so."""
    name = re.sub(r"[^\w.-]", "-", repo_id.split("/")[-1])
    taken = f"{name}.safetensors" in (WEIGHTS_NAME, MAP_NAME)
    return f"{name}-kohya" if taken else name


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _describe(found: Mapping[str, Any]) -> str:
    if not found:
        return "a model that was not recorded"
    return (
        f"a {found.get('denoiser', '?')} with text width {found.get('text_width', '?')} "
        f"and {found.get('cross_attention_layers', '?')} cross-attention layers"
    )


def _read_map(path: Path) -> TextMap:
    found = opened(path).tensors
    if found.keys() != {"U", "V"} or not all(x.is_floating_point() for x in found.values()):
        raise ErasureError(f"'{path}' holds {', '.join(sorted(found))}, and not a text map.")
    return TextMap(found["U"].double(), found["V"].double())


def _story(file: Opened) -> dict[str, Any]:
    """What the file's header says of the erasure; empty for the LoRAs of others."""
    try:
        told = json.loads(file.header.get("erasure", "{}"))
    except ValueError as error:
        raise ErasureError(f"'{file.path}' has a broken header: {error}.") from error
    return told if isinstance(told, dict) else {}
