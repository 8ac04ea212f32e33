"""EraserAdapter, the waist of the house: a LoRA on cross-attention and what it erases."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusers_erase.card import model_card
from diffusers_erase.crossattention import (
    COMPONENTS,
    Factors,
    component,
    fingerprint,
    linear,
    text_layers,
)
from diffusers_erase.errors import ErasureError
from diffusers_erase.folders import check_folder, whole_folder
from diffusers_erase.hub import fetch
from diffusers_erase.textmap import TextMap


WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
MAP_NAME = "text_map.safetensors"
CONFIG_NAME = "erasure_config.json"

_PLAIN_TYPES: dict[str, type] = {
    "synonyms": list,
    "parameters": dict,
    "fingerprint": dict,
    "results": dict,
    "versions": dict,
    "rank": int,
    "payloads": list,
}


@dataclass(frozen=True)
class EraserConfig:
    """What an eraser erases, to what, in which model, how it was made: `erasure_config.json`."""

    concept: str
    kind: str = "object"
    synonyms: tuple[str, ...] = ()
    target: str | None = None
    """What the concept is answered as; None for the same prompt without it."""
    recipe: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Every number the recipe ran with."""
    base_model: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """Class, text width and cross-attention size of the denoiser it was made for."""
    rank: int = 0
    payloads: tuple[str, ...] = ("lora",)
    """What there is of `lora` and `text_map`."""
    results: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Keys that a newer version wrote; kept, and written back."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        known = asdict(self)
        plain: dict[str, Any] = json.loads(json.dumps({**known.pop("unknown"), **known}))
        return plain

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EraserConfig":
        """The inverse of `to_dict`; unknown keys are kept and warned about."""
        if not isinstance(content, Mapping) or not isinstance(content.get("concept"), str):
            raise ErasureError(
                f"{CONFIG_NAME} names no concept; it was not written by diffusers_erase."
            )
        wrong = [
            name
            for name, kind in _PLAIN_TYPES.items()
            if not isinstance(content.get(name, kind()), kind)
        ]
        if wrong:
            raise ErasureError(f"{CONFIG_NAME} is damaged: '{wrong[0]}' is not what it should be.")
        names = {f.name for f in fields(cls)} - {"unknown"}
        known = {name: value for name, value in content.items() if name in names}
        unknown = {name: value for name, value in content.items() if name not in names}
        if unknown:
            warn(
                f"{CONFIG_NAME} was written by another version; kept but not understood: "
                f"{', '.join(unknown)}.",
                stacklevel=3,
            )
        for name in ("synonyms", "payloads"):
            known |= {name: tuple(known[name])} if name in known else {}
        return cls(**known, unknown=unknown)


@dataclass(frozen=True)
class Choice:
    """What one concept is answered as, and the rivals with their scores."""

    concept: str
    target: str | None
    how: str
    scores: dict[str, float] = field(default_factory=dict)


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

    def delta(self, path: str, weight: Tensor | None = None) -> Tensor:
        """What is added to a layer's weight W, float32 on the CPU: B A, or W P for a text map."""
        if self.text_map is not None and weight is not None:
            U, V = self.text_map.U.float(), self.text_map.V.float()
            changed: Tensor = (weight.detach().float().cpu() @ U) @ V.T
            return changed
        A, B = self.factors[path]
        return B @ A

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
            self._write_lora(folder, content)
        if self.text_map is not None:
            pair = {"U": self.text_map.U.float(), "V": self.text_map.V.float()}
            contiguous = {name: value.contiguous() for name, value in pair.items()}
            save_file(contiguous, folder / MAP_NAME)
        (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(model_card(content, repo_id), encoding="utf-8")

    def _write_lora(self, folder: Path, content: Mapping[str, Any]) -> None:
        tensors: dict[str, Tensor] = {}
        part = component(str(self.config.fingerprint.get("denoiser", "")))
        for path, (A, B) in self.factors.items():
            tensors[f"{part}.{path}.lora_A.weight"] = A.contiguous()
            tensors[f"{part}.{path}.lora_B.weight"] = B.contiguous()
        ranks = {path: len(A) for path, (A, _) in self.factors.items()}
        rank = max(ranks.values())
        others = {path: r for path, r in ranks.items() if r != rank}
        # exactly the fields that old and new diffusers read; alpha == rank keeps the strength
        lora = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted(ranks),
            "use_dora": False,
            "lora_bias": False,
        }
        header = {
            "format": "pt",
            "lora_adapter_metadata": json.dumps(
                {f"{part}.{key}": value for key, value in lora.items()}
            ),
            "erasure": json.dumps(content),
        }
        save_file(tensors, folder / WEIGHTS_NAME, header)

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub: Any) -> "EraserAdapter":
        """Read an eraser from a folder or from the Hub.

        Args:
            source: a folder written by `save_pretrained`, or a Hub id such as `user/erase-vangogh`.
            **hub: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
                `force_download`.

        Raises:
            ErasureError: nothing there, or not an eraser; safetensors only, nothing is executed.
        """
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
            factors, header = _read(fetch(source, WEIGHTS_NAME, **hub))
        if known is None and not header:
            raise ErasureError(f"'{source}' holds no {CONFIG_NAME}: it is a LoRA, but no eraser.")
        known = known or EraserConfig.from_dict(header)
        mapped = "text_map" in known.payloads
        return cls(factors, known, _read_map(fetch(source, MAP_NAME, **hub)) if mapped else None)

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
    check_folder(
        folder, overwrite=overwrite, marker=CONFIG_NAME, known=(WEIGHTS_NAME, MAP_NAME, "README.md")
    )


def versions() -> dict[str, str]:
    """The versions an eraser is made with."""
    found = {}
    for package in ("diffusers-erase", "torch", "diffusers", "transformers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


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
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ErasureError(f"'{path}' is no readable safetensors file: {error}.") from error
    if found.keys() != {"U", "V"} or not all(x.is_floating_point() for x in found.values()):
        raise ErasureError(f"'{path}' holds {', '.join(sorted(found))}, and not a text map.")
    return TextMap(found["U"].double(), found["V"].double())


def _read(path: Path) -> tuple[dict[str, Factors], dict[str, Any]]:
    """LoRA factors by layer, and what the file's header says of the erasure."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in names}
            header = json.loads((file.metadata() or {}).get("erasure", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ErasureError(f"'{path}' is no readable safetensors file: {error}.") from error
    halves: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = re.fullmatch(rf"(?:{'|'.join(COMPONENTS)})\.(.+)\.lora_([AB])\.weight", key)
        if match is None or not value.is_floating_point():
            raise ErasureError(f"'{path}' holds '{key}', which is no LoRA weight of a denoiser.")
        halves.setdefault(match[1], {})[match[2]] = value.float()
    single = [layer for layer, pair in halves.items() if len(pair) != 2]
    if single:
        raise ErasureError(f"'{path}' lacks one of the two LoRA factors of '{single[0]}'.")
    return {layer: (pair["A"], pair["B"]) for layer, pair in halves.items()}, header
