"""Weights on disk: safetensors alone, measured before they are read, the same bytes every time."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffusers_erase.errors import ErasureError, first_line
from diffusers_erase.storage.atomic import read_start


@dataclass(frozen=True)
class Limits:
    """Limits on files that are read: above what any eraser needs, below what does harm."""

    header: int = 16 * 2**20
    """Bytes."""
    tensors: int = 20_000
    """Number of tensors."""
    file: int = 4 * 2**30
    """Bytes."""
    rank: int = 4096
    """Of a layer's LoRA."""
    name: int = 500
    """Characters of a tensor's name."""


ERASER = Limits()
WHOLE_MODEL = Limits(file=100 * 2**30)
"""For weights that a user passes to `from_checkpoint`: they may be a whole denoiser's."""

DTYPES = "F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U8, BOOL"
"""Types of numbers that are read, as safetensors names them."""


@dataclass(frozen=True)
class Opened:
    """A safetensors file."""

    path: Path
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str] = field(default_factory=dict)


def opened(path: Path, limits: Limits = ERASER) -> Opened:
    """Read all of a safetensors file; nothing in it is executed.

    Raises:
        ErasureError: it is not one, or exceeds the limits; nothing has been allocated then.
    """
    with _open(path, limits) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Opened(path, tensors, file.metadata() or {})


def header_of(path: Path) -> dict[str, str]:
    """The header of a safetensors file, without its tensors; empty if it is not one."""
    try:
        with _open(path, ERASER) as file:
            return dict(file.metadata() or {})
    except ErasureError:
        return {}


def shapes_in(path: Path) -> tuple[dict[str, list[int]], set[str]]:
    """Name -> shape of a safetensors file's tensors, and their types; no tensor is read.

    Raises:
        ErasureError: it is not one, or exceeds the limits.
    """
    with _open(path, ERASER) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: list(part.get_shape()) for name, part in parts.items()}
        return shapes, {part.get_dtype() for part in parts.values()}


def serialized(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """A safetensors file: the same tensors and header, the same bytes."""
    content = save({name: x.contiguous() for name, x in tensors.items()}, dict(header))
    size = int.from_bytes(content[:8], "little")
    places = json.loads(content[8 : 8 + size])
    # the library writes the strings of the header in an order that differs from call to call
    places["__metadata__"] = dict(sorted(header.items()))
    text = json.dumps(places, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@contextmanager
def _open(path: Path, limits: Limits) -> Iterator[Any]:
    """A safetensors file whose size, header, names and types are within the limits."""
    size, start = read_start(path, limits.file, 8)
    header = int.from_bytes(start, "little")
    try:
        if size < 8 or header > size - 8:
            raise ValueError("it ends within its own header")
        if header > limits.header:
            raise ErasureError(
                f"The header of '{path}' has {header:,} bytes; {limits.header:,} are read at most."
            )
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > limits.tensors:
                raise ErasureError(
                    f"'{path}' holds {len(names):,} tensors; {limits.tensors:,} are read at most."
                )
            for name in names:
                dtype = file.get_slice(name).get_dtype()
                if len(name) > limits.name or not name.isprintable():
                    raise ErasureError(
                        f"'{path}' holds a tensor whose name is no path of a layer: {name[:50]!r}."
                    )
                if dtype not in DTYPES.split(", "):
                    raise ErasureError(
                        f"'{path}' holds '{name}' of type {dtype}; known are {DTYPES}."
                    )
            yield file
    except ErasureError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise ErasureError(
            f"'{path}' is no readable safetensors file: {first_line(error)}."
        ) from error
