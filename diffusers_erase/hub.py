"""Files of a folder or of a repository on the Hub, and what kept them away, in a user's words."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict, Unpack

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from diffusers_erase.errors import ErasureError


_OURS = ("name", "strength", "mode", "keep_base")
"""Options of `load_erasure` that are nobody else's."""


class HubOptions(TypedDict, total=False):
    """What `from_pretrained` and `load_erasure` hand on to the Hub's client."""

    revision: str | None
    subfolder: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


def check_options(call: str, given: Mapping[str, Any]) -> None:
    """Refuse what is no option of the Hub: a slip of the pen would pass unseen with a folder.

    Raises:
        TypeError: as Python does for any other function.
    """
    for name in given:
        if name not in HubOptions.__annotations__:
            near = get_close_matches(name, [*HubOptions.__annotations__, *_OURS], n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{meant}")


def fetch(source: str | Path, name: str, **hub: Unpack[HubOptions]) -> Path:
    """A file of a folder or of a repository on the Hub.

    Args:
        source: a folder, or a Hub id.
        name: of the file.
        **hub: as for `from_pretrained`.

    Raises:
        ErasureError: there is no such folder, repository or file, or the Hub cannot be reached.
    """
    folder = Path(source)
    if folder.exists():
        path: Path = folder / (hub.get("subfolder") or "") / name
        if not path.is_file():
            raise ErasureError(
                f"'{folder}' holds no {name}; is it a folder written by `save_pretrained`?"
            )
        return path
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise ErasureError(
            f"There is no folder '{source}', and it is no Hub id (user/name) either."
        )
    try:
        return Path(hf_hub_download(str(source), name, **hub))
    except Exception as error:  # the Hub's errors have no common base but this one
        raise ErasureError(
            f"There is no folder '{source}', and {name} cannot be had from the Hub: "
            f"{_hub_reason(error)}."
        ) from error


def _hub_reason(error: BaseException) -> str:
    """What went wrong in the user's words; a forced download wraps the real error."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    for kind, reason in (
        (GatedRepoError, "the repository is gated; accept its terms and log in (`hf auth login`)"),
        (RepositoryNotFoundError, "the repository does not exist, or is private"),
        (RevisionNotFoundError, "the repository has no such revision"),
        (LocalEntryNotFoundError, "the Hub cannot be reached, and the file is not in the cache"),
        (EntryNotFoundError, "the repository has no such file"),
    ):
        if any(isinstance(cause, kind) for cause in causes):
            return reason
    return next(iter(str(causes[-1]).strip().splitlines()), type(error).__name__).rstrip(".")


def commit_of(source: str | Path, name: str, **hub: Unpack[HubOptions]) -> str | None:
    """The commit that a file was fetched from; None for a folder, or a file that is not cached."""
    if Path(source).exists():
        return None
    inside = "/".join(part for part in (hub.get("subfolder"), name) if part)
    cached = try_to_load_from_cache(
        str(source), inside, cache_dir=hub.get("cache_dir"), revision=hub.get("revision")
    )
    return Path(cached).parents[inside.count("/")].name if isinstance(cached, str) else None
