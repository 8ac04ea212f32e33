"""Files of a folder or of a repository on the Hub, there and back; what went wrong, in words."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict, Unpack

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from diffusers_erase.errors import ErasureError, first_line


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


class MissingFileError(ErasureError):
    """A folder or repository is there, and a file of it is not."""


def fetch(source: str | Path, name: str, **hub: Unpack[HubOptions]) -> Path:
    """A file of a folder or of a repository on the Hub.

    What the cache holds is compared with the hash the Hub names it by, and fetched again if it is
    not the same.

    Args:
        source: a folder, or a Hub id.
        name: of the file.
        **hub: as for `from_pretrained`.

    Raises:
        MissingFileError: there is no such file.
        ErasureError: there is no such folder or repository, or the Hub cannot be reached.
    """
    folder = Path(source)
    if folder.exists():
        path: Path = folder / (hub.get("subfolder") or "") / name
        if path.is_file():
            return path
        raise MissingFileError(
            f"'{folder}' holds no {name}; is it a folder written by `save_pretrained`?"
        )
    _check_id(source)
    try:
        path = Path(hf_hub_download(str(source), name, **hub))
        if _damaged(path):
            path.resolve().unlink()
            hub["force_download"] = True
            path = Path(hf_hub_download(str(source), name, **hub))
    except Exception as error:  # the Hub's errors have no common base but this one
        reason, kind = _reason(error)
        raise (MissingFileError if kind is EntryNotFoundError else ErasureError)(
            f"There is no folder '{source}', and {name} cannot be had from the Hub: {reason}."
        ) from error
    if _damaged(path):
        path.resolve().unlink()
        raise ErasureError(
            f"{name} of '{source}' arrived with other content than the Hub announced, twice; it "
            "was not kept."
        )
    return path


def commit_of(source: str | Path, name: str, **hub: Unpack[HubOptions]) -> str | None:
    """The commit that a file was fetched from; None for a folder, or a file that is not cached."""
    if Path(source).exists():
        return None
    inside = "/".join(part for part in (hub.get("subfolder"), name) if part)
    cached = try_to_load_from_cache(
        str(source), inside, cache_dir=hub.get("cache_dir"), revision=hub.get("revision")
    )
    return Path(cached).parents[inside.count("/")].name if isinstance(cached, str) else None


def pinned(source: str | Path, name: str, **hub: Unpack[HubOptions]) -> HubOptions:
    """The options that fetch from the commit which a file came from, whatever is pushed since."""
    commit = commit_of(source, name, **hub)
    return {**hub, "revision": commit} if commit else hub


def publish(
    repo_id: str,
    files: Mapping[str, bytes],
    *,
    marker: str,
    stale: Sequence[str],
    message: str,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """All files in one commit, in a new repository if need be; the address of the commit.

    The same content again makes no commit.

    Args:
        repo_id: `user/name`, or a name of one's own.
        files: path -> content.
        marker: the file by which a former result is known.
        stale: patterns of files of a former result that go if they are not among the files.
        message: of the commit.
        private: whether a new repository is.
        token: to write with; the one logged in with if omitted.
        create_pr: as a pull request.

    Raises:
        ErasureError: the repository holds something else, or the Hub refuses or cannot be reached;
            nothing was published then.
    """
    api = HfApi(token=token)
    with _in_words(f"'{repo_id}' cannot be published"):
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        there = set(api.list_repo_files(repo))
        if there - {".gitattributes", "README.md"} and marker not in there:
            raise ErasureError(
                f"'{repo_id}' holds something else than an eraser, so nothing is written there; "
                "choose another name."
            )
        gone = [p for p in there - files.keys() if any(fnmatchcase(p, s) for s in stale)]
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationDelete(path) for path in sorted(gone)),
                *(CommitOperationAdd(path, content) for path, content in files.items()),
            ],
            commit_message=message,
            create_pr=create_pr,
        )
    return str(commit.pr_url or commit.commit_url)


@dataclass(frozen=True)
class Found:
    """An eraser on the Hub."""

    repo_id: str
    concepts: tuple[str, ...]
    """What it erases, as its card says; empty where it says nothing."""
    base_model: str
    downloads: int
    likes: int


def find_erasers(
    *,
    base_model: str | None = None,
    concept: str | None = None,
    author: str | None = None,
    limit: int | None = 100,
    token: str | None = None,
) -> list[Found]:
    """Erasers on the Hub, by the tags of their cards.

    Args:
        base_model: made for this model, by its Hub id.
        concept: what they erase; upper and lower case are the same.
        author: whose.
        limit: how many at most; None for all.
        token: for private ones.

    Raises:
        ErasureError: the Hub cannot be reached.
    """
    tags = ["diffusers-erase"]
    tags += [f"base_model:adapter:{base_model}"] if base_model else []
    tags += [tag_of(concept)] if concept else []
    with _in_words("Erasers cannot be looked for"):
        models = HfApi(token=token).list_models(
            filter=tags, author=author, limit=limit, cardData=True
        )
        return [_found(model) for model in models]


def tag_of(concept: str) -> str:
    """The tag by which erasers of a concept are found."""
    return "erases-" + re.sub(r"[^\w]+", "-", concept.lower()).strip("-")


def files_of(source: str | Path, **hub: Unpack[HubOptions]) -> list[str]:
    """Paths of the files in a folder or a repository, from its top.

    Raises:
        ErasureError: there is no such folder or repository, or the Hub cannot be reached.
    """
    folder = Path(source) / (hub.get("subfolder") or "")
    if Path(source).exists():
        found = (path for path in folder.rglob("*") if path.is_file())
        return [path.relative_to(folder).as_posix() for path in found]
    _check_id(source)
    with _in_words(f"The files of '{source}' cannot be listed"):
        listed = HfApi(token=hub.get("token")).list_repo_files(
            str(source), revision=hub.get("revision")
        )
        within = f"{hub.get('subfolder')}/" if hub.get("subfolder") else ""
        return [path.removeprefix(within) for path in listed if path.startswith(within)]


def header_on(
    repo_id: str, name: str, **hub: Unpack[HubOptions]
) -> tuple[dict[str, list[int]], set[str]]:
    """Name -> shape of a safetensors file's tensors, and their types; by ranged reads.

    Raises:
        ErasureError: there is no such file, or the Hub cannot be reached.
    """
    inside = "/".join(part for part in (hub.get("subfolder"), name) if part)
    with _in_words(f"The header of {name} of '{repo_id}' cannot be read"):
        found = HfApi(token=hub.get("token")).parse_safetensors_file_metadata(
            repo_id, inside, revision=hub.get("revision")
        )
    shapes = {key: list(tensor.shape) for key, tensor in found.tensors.items()}
    return shapes, {tensor.dtype for tensor in found.tensors.values()}


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    try:
        yield
    except ErasureError:
        raise
    except Exception as error:  # the Hub's errors have no common base but this one
        raise ErasureError(f"{what}: {_reason(error)[0]}.") from error


def _found(model: Any) -> Found:
    card = model.card_data.to_dict() if model.card_data else {}
    told = card.get("erasure")
    named = told.get("concepts") if isinstance(told, dict) else None
    base = card.get("base_model")
    return Found(
        model.id,
        tuple(map(str, named)) if isinstance(named, list) else (),
        str(base or ""),
        model.downloads or 0,
        model.likes or 0,
    )


def _check_id(source: str | Path) -> None:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise ErasureError(
            f"There is no folder '{source}', and it is no Hub id (user/name) either."
        )


def _damaged(path: Path) -> bool:
    """Whether a file of the cache is not what its name there, a hash of its content, says."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name
    if re.fullmatch(r"[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob.name
    return False


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "the repository is gated; accept its terms and log in (`hf auth login`)"),
    (RepositoryNotFoundError, "the repository does not exist, or is private"),
    (RevisionNotFoundError, "the repository has no such revision"),
    (LocalEntryNotFoundError, "the Hub cannot be reached, and the file is not in the cache"),
    (EntryNotFoundError, "the repository has no such file"),
)

_STATUS = {
    401: "the Hub does not know the token; log in (`hf auth login`)",
    403: "the token does not allow it",
    409: "somebody else wrote to the repository meanwhile; try again",
    429: "the Hub asks to come back later: too many requests",
}


def _reason(error: BaseException) -> tuple[str, type[BaseException]]:
    """What went wrong in the user's words, and its kind; a forced download wraps the real error."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    for kind, reason in _REASONS:
        if any(isinstance(cause, kind) for cause in causes):
            return reason, kind
    for cause in causes:
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0
        if status in _STATUS:
            return _STATUS[status], type(cause)
        if status >= 500:
            own = f"the Hub answers with an error of its own ({status}); try again later"
            return own, type(cause)
    return first_line(causes[-1]), type(causes[-1])
