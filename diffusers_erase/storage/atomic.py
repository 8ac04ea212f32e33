"""Files and folders that are written whole or not at all, and bounded reading."""

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers_erase.errors import ErasureError


def check_folder(folder: Path, *, overwrite: bool, marker: str, known: Collection[str]) -> None:
    """Refuse a folder that cannot or must not be written, before work is spent on its content.

    An empty folder may always be written.

    Args:
        folder: where the result is to go.
        overwrite: whether a former result may be replaced.
        marker: the file by which a former result is known.
        known: other names that a former result may hold; with any more it is not overwritten.

    Raises:
        ErasureError: the folder exists and may not be replaced, or cannot be written.
    """
    folder = folder.absolute()
    try:
        inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        exists = bool(inside) or (folder.exists() and not folder.is_dir())
        above = next(parent for parent in folder.parents if parent.exists())
    except OSError as error:
        raise ErasureError(f"Cannot write to '{folder}': {error.strerror or error}.") from error
    if exists and not overwrite:
        raise ErasureError(
            f"'{folder}' exists already; choose another folder, or replace it with "
            "`overwrite=True` (`--overwrite`)."
        )
    if exists and (marker not in inside or inside - {marker, *known}):
        raise ErasureError(
            f"'{folder}' exists and holds something else, so it is not overwritten; "
            "choose another folder."
        )
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ErasureError(f"Cannot write to '{folder}': '{above}' is no folder one can write to.")


def slug(text: str) -> str:
    """A file name for the text: its letters and digits, everything else as hyphens; 60 at most."""
    return re.sub(r"[^\w]+", "-", text).strip("-")[:60] or "-"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft beside `path` that takes its place if the block succeeds; else nothing changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")  # processes may write at once
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """As `whole_file`, for a folder; raises an ErasureError if it cannot be written."""
    folder = folder.absolute()
    draft = old = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        draft.chmod(0o755)
        yield draft
        for path in draft.iterdir():  # some writers leave files that their owner alone can read
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)) / "old"
            folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            if old is not None:
                old.rename(folder)
            raise
    except OSError as error:
        raise ErasureError(f"Cannot write to '{folder}': {error.strerror or error}.") from error
    finally:
        for leftover in (draft, old.parent if old else None):
            if leftover is not None:
                shutil.rmtree(leftover, ignore_errors=True)


def read_text(path: Path, limit: int) -> str:
    """Text of a regular file, UTF-8, of `limit` bytes at most.

    Raises:
        ErasureError: it is no regular file, too large, or no text.
    """
    try:
        return read_start(path, limit, limit)[1].decode()
    except UnicodeDecodeError as error:
        raise ErasureError(f"'{path}' cannot be read: {error}.") from error


def read_start(path: Path, limit: int, count: int) -> tuple[int, bytes]:
    """Size of a regular file, and its first `count` bytes.

    Raises:
        ErasureError: it is no regular file, or has more than `limit` bytes.
    """
    try:
        if not path.is_file():  # also for devices, pipes, and links to them
            raise ErasureError(f"There is no file '{path}'.")
        size = path.stat().st_size
        if size > limit:
            raise ErasureError(f"'{path}' has {size:,} bytes; {limit:,} are read at most.")
        with path.open("rb") as file:  # the size of a stream that never ends is 0
            return size, file.read(min(size, count))
    except OSError as error:
        raise ErasureError(f"'{path}' cannot be read: {error.strerror or error}.") from error
