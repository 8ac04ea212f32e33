"""What names a source of files, and what is believed of a cache."""

import hashlib
import tracemalloc

import pytest

from diffusers_erase import ErasureError
from diffusers_erase.storage.hub import _is_damaged, files_of, local_folder, snapshot


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "There is no folder '', and it is no Hub id"),
        ("  ", "There is no folder '  ', and it is no Hub id"),
        (
            "https://huggingface.co/user/name",
            "is an address; pass the repository's id, 'user/name'",
        ),
        ("http://hub.example/user/name/tree/main", "pass the repository's id, 'user/name'"),
        ("https://huggingface.co/name", "it is no Hub id"),
        ("no\nsuch/one", r"There is no folder 'no\\nsuch/one'"),
        ("a/b/c", "There is no folder 'a/b/c', and it is no Hub id"),
        ("~nobody-of-that-name/x", "There is no folder '~nobody-of-that-name/x': Could not"),
        ("x" * 5000, "There is no folder 'xxx.*File name too long"),
    ],
)
def test_snapshot_refuses_a_source_that_is_neither_folder_nor_hub_id(source, message):
    with pytest.raises(ErasureError, match=message):
        snapshot(source, ["x"])
    with pytest.raises(ErasureError, match=message):
        files_of(source)


@pytest.mark.parametrize(
    "revision", ["", "main\n", "a b", "\x1b[2J", "main~1", "x:y", "\x7f", "a" * 400]
)
def test_snapshot_refuses_a_revision_that_git_cannot_have(revision, hub, tmp_path):
    for source in ("user/name", tmp_path):
        with pytest.raises(ErasureError, match="is no revision; pass a branch") as refusal:
            snapshot(source, ["x"], revision=revision)
        assert str(refusal.value).isprintable()
    assert not hub.log


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0+x", "größer", "0" * 40])
def test_snapshot_asks_the_hub_for_every_other_revision(revision, hub):
    with pytest.raises(ErasureError, match="does not exist, or is private"):
        snapshot("user/name", ["x"], revision=revision)
    assert hub.log


def test_local_folder_is_looked_for_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "erase-car").mkdir()
    assert local_folder("~/erase-car") == tmp_path / "erase-car"
    assert local_folder("user/name") is None


def test_path_of_a_snapshot_is_a_regular_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    files = snapshot(tmp_path, [])
    assert files.commit is None
    assert files.path("link").read_text() == "x"
    for name in ("folder", "device", "nothing"):
        with pytest.raises(ErasureError, match=f"holds no {name}"):
            files.path(name)


def test_blobs_are_hashed_in_pieces(tmp_path):
    size = 64 * 2**20
    names = (
        hashlib.sha256(bytes(size)).hexdigest(),
        hashlib.sha1(b"blob %d\0" % size + bytes(size)).hexdigest(),
    )
    tracemalloc.start()
    try:
        for name in names:
            for content in (size, size - 1):
                with (tmp_path / name).open("wb") as blob:
                    blob.truncate(content)
                assert _is_damaged(tmp_path / name) == (content != size)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
