"""Results logs: one line of JSON per result, so that an interrupted run can be resumed."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffusers_erase.errors import ErasureError
from diffusers_erase.storage.atomic import slug


class ResultsLog:
    """Key -> result, in a folder's `.jsonl` files or in memory alone.

    Every process writes a file of its own and reads those of all, also processes of other runs
    that share the folder. Incomplete lines are ignored.
    """

    def __init__(self, folder: Path | None = None, name: str = "found", rank: int = 0) -> None:
        self.folder, self.name, self.rank = folder, name, rank
        self.known: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what all processes have written by now."""
        if self.folder is not None:
            for path in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
                for entry in lines_of(path):
                    with suppress(TypeError, KeyError):  # no entry
                        self.known[entry["key"]] = entry["found"]

    def __contains__(self, key: str) -> bool:
        return key in self.known

    def __getitem__(self, key: str) -> Any:
        return self.known[key]

    def add(self, results: Mapping[str, Any]) -> None:
        """Add results by key; they are on disk when this returns.

        Raises:
            ErasureError: the folder cannot be written.
        """
        self.known.update(results)
        if self.folder is None or not results:
            return
        lines = [json.dumps({"key": key, "found": found}) for key, found in results.items()]
        path = self.folder / f"{self.name}.{self.rank}-{process_name()}.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                if file.tell():  # a line that was cut off is ended
                    file.seek(-1, 2)
                    lines = lines if file.read(1) == b"\n" else ["", *lines]
                file.write("".join(f"{line}\n" for line in lines).encode())
                file.flush()
        except OSError as error:
            raise ErasureError(
                f"Cannot keep what was found in '{self.folder}': {error.strerror or error}."
            ) from error


def process_name() -> str:
    """A name for this process among those of all machines that run now."""
    return f"{slug(socket.gethostname())}-{os.getpid()}"


def lines_of(path: Path) -> Iterator[Any]:
    """The JSON values of a file, one per line; incomplete lines are ignored."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def key_of(**content: Any) -> str:
    """A short name for plain values."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
