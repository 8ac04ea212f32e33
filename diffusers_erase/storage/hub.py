"""Files of a local folder or of a repository on the Hub, read and published."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import escape
from hashlib import file_digest, sha1, sha256
from pathlib import Path
from typing import Any, TypedDict, Unpack

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from diffusers_erase.errors import ErasureError, first_line


_OURS = ("name", "strength", "mode", "keep_base", "keep_null")
"""Options of `load_erasure` itself."""


class HubOptions(TypedDict, total=False):
    """Options of `from_pretrained` and `load_erasure` that the Hub's client takes."""

    revision: str | None
    subfolder: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


def check_options(call: str, given: Mapping[str, Any]) -> None:
    """Raise a TypeError, as Python does, for a name that is no option of the Hub's client.

    Raises:
        ErasureError: `revision` or `subfolder` is no string.
    """
    for name in given:
        if name not in HubOptions.__annotations__:
            near = get_close_matches(name, [*HubOptions.__annotations__, *_OURS], n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{meant}")
    for name, example in (("revision", "a branch, a tag or a commit"), ("subfolder", "a folder")):
        if not isinstance(given.get(name), str | None):
            raise ErasureError(f"`{name}` is {example}, a string; got {given[name]!r:.99}.")


@dataclass(frozen=True)
class Snapshot:
    """A folder with files of a source."""

    source: str
    folder: Path
    commit: str | None = None
    """The repository's commit, if they come from the Hub."""

    def path(self, name: str) -> Path:
        """The path of a file.

        Raises:
            ErasureError: the source has no such file.
        """
        if not (self.folder / name).is_file():  # also for devices, pipes, and links to them
            raise ErasureError(
                f"'{self.source}' holds no {name}; is it a folder written by `save_pretrained`?"
            )
        return self.folder / name


def snapshot(source: str | Path, names: Sequence[str], **hub: Unpack[HubOptions]) -> Snapshot:
    """Files of a local folder, or of one commit of a repository on the Hub.

    Cached files are compared with their hashes on the Hub, and fetched again where they differ. A
    file that the source does not have is missing in the folder too.

    Args:
        source: a folder, or a Hub id.
        names: names of the files, or patterns such as `*.safetensors`.
        **hub: as for `from_pretrained`.

    Raises:
        ErasureError: there is no such folder or repository, or the Hub cannot be reached.
    """
    subfolder, revision = hub.get("subfolder") or "", hub.get("revision")
    options: dict[str, Any] = {key: value for key, value in hub.items() if key != "subfolder"}
    known = re.fullmatch(r"[^\s~^:?*\[\\]{1,250}", revision or "main")
    if revision == "" or not known or not known[0].isprintable():
        raise ErasureError(f"{revision!r:.99} is no revision; pass a branch, a tag or a commit.")
    folder = local_folder(source)
    if folder is not None:
        return Snapshot(str(source), folder / subfolder)
    prefix = f"{escape(subfolder)}/" if subfolder else ""
    wanted = [prefix + name for name in names]
    for _ in range(2):
        with _hub_errors(f"There is no folder '{source}', and it cannot be had from the Hub"):
            if hub.get("force_download") and not hub.get("local_files_only"):
                # the client answers a refusal from its cache; this raises
                HfApi(token=hub.get("token")).model_info(str(source), revision=revision)
            top = Path(snapshot_download(str(source), allow_patterns=wanted, **options))
        damaged = [path for name in wanted for path in top.glob(name) if _is_damaged(path)]
        if not damaged:
            return Snapshot(str(source), top / subfolder, top.name)
        for path in damaged:
            path.resolve().unlink()
            path.unlink()
    raise ErasureError(
        f"{damaged[0].name} of '{source}' arrived with other content than the Hub announced, "
        "twice; it was not kept."
    )


def local_folder(source: str | Path) -> Path | None:
    """The folder or file that a source names; None if it is a Hub id.

    Raises:
        ErasureError: it is neither.
    """
    try:
        path = Path(source).expanduser()
        if str(source).strip() and path.exists():
            return path
    except (OSError, RuntimeError) as error:  # a name too long, no home of that user
        raise ErasureError(f"There is no folder {str(source)!r:.300}: {error}.") from error
    address = re.match(r"https?://[^/]+/([\w.-]+/[\w.-]+)", str(source))
    if address:
        raise ErasureError(
            f"'{source}' is an address; pass the repository's id, '{address[1]}', and a branch or "
            "commit as `revision`."
        )
    if not is_hub_id(str(source)):
        raise ErasureError(
            f"There is no folder {str(source)!r:.300}, and it is no Hub id (user/name) either."
        )
    return None


def is_hub_id(text: str) -> bool:
    """True if a text has the form `user/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


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
    """Publish files in one commit, in a new repository if need be; returns its address.

    The same content again makes no commit.

    Args:
        repo_id: `user/name`, or a name of one's own.
        files: path -> content.
        marker: name or pattern of the file by which a former result is known.
        stale: patterns of files of a former result to delete if they are not among the files.
        message: of the commit.
        private: whether a new repository is.
        token: to write with; the one logged in with if omitted.
        create_pr: as a pull request.

    Raises:
        ErasureError: the repository holds something else, or the Hub refuses or cannot be reached;
            nothing was published then.
    """
    api = HfApi(token=token)
    with _hub_errors(f"'{repo_id}' cannot be published"):
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        present = set(api.list_repo_files(repo))
        known = any(fnmatchcase(path, marker) for path in present)
        if present - {".gitattributes", "README.md"} and not known:
            raise ErasureError(
                f"'{repo_id}' holds something else (no {marker}), so nothing is written there; "
                "choose another name."
            )
        gone = [p for p in present - files.keys() if any(fnmatchcase(p, s) for s in stale)]
        deleted = [CommitOperationDelete(path) for path in sorted(gone)]
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        commit = api.create_commit(
            repo, [*deleted, *added], commit_message=message, create_pr=create_pr
        )
    return str(commit.pr_url or commit.commit_url)


@dataclass(frozen=True)
class Found:
    """An eraser on the Hub."""

    repo_id: str
    concepts: tuple[str, ...]
    """The concepts named by its card."""
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
    with _hub_errors("Erasers cannot be looked for"):
        api = HfApi(token=token)
        models = api.list_models(filter=tags, author=author, limit=limit, cardData=True)
        return [_found(model) for model in models]


def tag_of(concept: str) -> str:
    """The tag by which erasers of a concept are found."""
    return "erases-" + re.sub(r"[^\w]+", "-", concept.lower()).strip("-")


def files_of(source: str | Path, **hub: Unpack[HubOptions]) -> list[str]:
    """Paths of the files in a folder or a repository, from its top.

    Raises:
        ErasureError: there is no such folder or repository, or the Hub cannot be reached.
    """
    subfolder = hub.get("subfolder") or ""
    folder = local_folder(source)
    if folder is not None:
        found = (path for path in (folder / subfolder).rglob("*") if path.is_file())
        return [path.relative_to(folder / subfolder).as_posix() for path in found]
    with _hub_errors(f"The files of '{source}' cannot be listed"):
        api, revision = HfApi(token=hub.get("token")), hub.get("revision")
        listed = api.list_repo_files(str(source), revision=revision)
        within = f"{subfolder}/" if subfolder else ""
        return [path.removeprefix(within) for path in listed if path.startswith(within)]


def header_on(
    repo_id: str, name: str, **hub: Unpack[HubOptions]
) -> tuple[dict[str, list[int]], set[str]]:
    """Name -> shape of a safetensors file's tensors, and their types; by ranged reads.

    Raises:
        ErasureError: there is no such file, or the Hub cannot be reached.
    """
    inside = "/".join(part for part in (hub.get("subfolder"), name) if part)
    with _hub_errors(f"The header of {name} of '{repo_id}' cannot be read"):
        api, revision = HfApi(token=hub.get("token")), hub.get("revision")
        found = api.parse_safetensors_file_metadata(repo_id, inside, revision=revision)
    shapes = {key: list(tensor.shape) for key, tensor in found.tensors.items()}
    return shapes, {tensor.dtype for tensor in found.tensors.values()}


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    try:
        yield
    except ErasureError:
        raise
    except Exception as error:  # the Hub's errors have no common base but this one
        raise ErasureError(f"{what}: {_reason(error)}.") from error


def _found(model: Any) -> Found:
    card = model.card_data.to_dict() if model.card_data else {}
    summary = card.get("erasure")
    named = summary.get("concepts") if isinstance(summary, dict) else None
    concepts = tuple(map(str, named)) if isinstance(named, list) else ()
    base = str(card.get("base_model") or "")
    return Found(model.id, concepts, base, model.downloads or 0, model.likes or 0)


def _is_damaged(path: Path) -> bool:
    """True if the cache names a file by a hash that is not the hash of its content."""
    blob = path.resolve()
    kinds = {64: sha256, 40: lambda: sha1(b"blob %d\0" % blob.stat().st_size)}
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return False
    with blob.open("rb") as file:
        return file_digest(file, kinds[len(blob.name)]).hexdigest() != blob.name


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "the repository is gated; accept its terms and log in (`hf auth login`)"),
    (RepositoryNotFoundError, "the repository does not exist, or is private"),
    (RevisionNotFoundError, "the repository has no such revision"),
)

_STATUS = {
    401: "the Hub does not know the token; log in (`hf auth login`)",
    403: "the token does not allow it",
    409: "somebody else wrote to the repository meanwhile; try again",
    429: "the Hub asks to come back later: too many requests",
}


def _reason(error: BaseException) -> str:
    """The reason of an error of the Hub's client, which wraps some errors in others."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    for kind, reason in _REASONS:
        if any(isinstance(cause, kind) for cause in causes):
            return reason
    for cause in causes:
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0
        if status in _STATUS:
            return _STATUS[status]
        if status >= 500:
            return f"the Hub answers with an error of its own ({status}); try again later"
    if isinstance(error, LocalEntryNotFoundError):
        return "the Hub cannot be reached, and the files are not in the cache"
    if isinstance(error, EntryNotFoundError):
        return "the repository has no such file"
    return first_line(causes[-1])
