"""A disk cache of tensors, with everything that determines them as the key."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.storage.atomic import whole_file
from diffusers_erase.storage.results import key_of


@dataclass(frozen=True)
class TensorCache:
    """A folder of safetensors files, `limit` bytes together; the least recently used go first."""

    folder: Path
    limit: int = 4 * 2**30

    def get(
        self, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors that `make` returns, from disk if they were made before with the same key.

        They are mapped from the file, so that only those used take memory. A damaged file is made
        anew.

        Raises:
            ErasureError: the folder cannot be written.
        """
        path = self.folder / f"{key_of(**key)}.safetensors"
        if path.is_file():
            try:
                tensors = load_file(path)
                path.touch()
                return tensors
            except (SafetensorError, OSError):
                path.unlink()
        tensors = {name: value.contiguous() for name, value in make().items()}
        try:
            with whole_file(path) as draft:
                save_file(tensors, draft, {"key": json.dumps(key, sort_keys=True)})
            self._make_room(path)
        except (OSError, SafetensorError) as error:
            raise ErasureError(
                f"Cannot keep tensors in '{self.folder}': {error}. Make room there or choose "
                "another folder."
            ) from error
        return load_file(path)

    def _make_room(self, newest: Path) -> None:
        files = [path for path in self.folder.glob("*.safetensors") if path != newest]
        files.sort(key=lambda path: path.stat().st_mtime)
        total = newest.stat().st_size + sum(path.stat().st_size for path in files)
        while files and total > self.limit:
            total -= files[0].stat().st_size
            files.pop(0).unlink()


class KeptTensors:
    """The same in memory, for as long as it is referred to."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Tensor]] = {}

    def get(
        self, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors that `make` returned for this key, made if need be."""
        name = key_of(**key)
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]


def digest(*content: Tensor | nn.Module) -> str:
    """A name for the exact values of tensors and of a network's parameters and buffers."""
    hashed = hashlib.blake2b(digest_size=16)
    for each in content:
        tensors = each.state_dict() if isinstance(each, nn.Module) else {"": each}
        for name, tensor in tensors.items():
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            hashed.update(plain.view(torch.uint8).numpy().data)
    return hashed.hexdigest()
