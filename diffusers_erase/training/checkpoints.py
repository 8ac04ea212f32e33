"""Checkpoints of a training run, written atomically and resumed by the same run only."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusers_erase.errors import ErasureError
from diffusers_erase.storage.atomic import whole_file


@dataclass(frozen=True)
class Checkpoints:
    """Files `checkpoint-<step>.safetensors` in a folder."""

    folder: Path
    run: Mapping[str, Any]
    """Everything that determines the run, as plain JSON types; a checkpoint of another run is
    refused."""
    every: int = 20
    """Steps between two checkpoints."""
    newest: int = 2
    """Number of checkpoints in the folder; older ones are deleted."""

    def save(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Write a draft, then rename it: a run killed meanwhile leaves the former checkpoints."""
        path = self.folder / f"checkpoint-{step:06d}.safetensors"
        header = {"step": str(step), "run": json.dumps(self.run)}
        try:
            tensors = {name: value.contiguous() for name, value in state.items()}
            with whole_file(path) as draft:
                save_file(tensors, draft, header)
            for old in self._paths()[self.newest :]:
                old.unlink()
        except (OSError, SafetensorError) as error:
            raise ErasureError(
                f"Cannot write a checkpoint to '{self.folder}': {error}. Make room there or choose "
                "another folder; former checkpoints are whole."
            ) from error

    def latest(self) -> tuple[int, dict[str, Tensor]] | None:
        """The number of steps and the state after them of the newest readable checkpoint, if any.

        Raises:
            ErasureError: it belongs to another run; the message says what differs.
        """
        for path in self._paths():
            try:
                with safe_open(path, "pt") as file:
                    header = file.metadata()
                    state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                step, run = int(header["step"]), json.loads(header["run"])
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                continue
            self._check(path, run)
            return step, state
        return None

    def _check(self, path: Path, run: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(self.run))
        other = [key for key in {**run, **now} if run.get(key) != now.get(key)]
        if other:
            differences = "; ".join(
                f"{key} was {run.get(key)!r}, is {now.get(key)!r}" for key in other[:3]
            )
            raise ErasureError(
                f"'{path}' belongs to another run ({differences}); choose another folder for "
                "checkpoints, or delete it to start anew."
            )

    def _paths(self) -> list[Path]:
        """Paths of all checkpoints, newest first."""
        named = re.compile(r"checkpoint-(\d{6,})\.safetensors")
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if named.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]), reverse=True)
