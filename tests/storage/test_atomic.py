import os

import pytest

from diffusers_erase.errors import ErasureError
from diffusers_erase.storage.atomic import check_folder, whole_file, whole_folder


def check(folder, overwrite=True):
    check_folder(folder, overwrite=overwrite, marker="marker", known=("known",))


def make(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_the_folder_appears_complete(tmp_path):
    with whole_folder(tmp_path / "a" / "b") as draft:
        (draft / "file").write_text("new")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_a_block_that_fails_changes_nothing(tmp_path):
    folder = make(tmp_path / "folder", "marker")

    def fail():
        with whole_folder(folder) as draft:
            (draft / "marker").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (folder / "marker").read_text() == "marker"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_former_result_is_replaced_whole(tmp_path):
    folder = make(tmp_path / "folder", "marker", "known")
    with whole_folder(folder) as draft:
        (draft / "marker").write_text("new")
    assert [p.name for p in folder.iterdir()] == ["marker"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("names", [("marker",), ("marker", "known")])
def test_former_results_may_be_replaced_on_request(tmp_path, names):
    folder = make(tmp_path / "folder", *names)
    check(folder)
    with pytest.raises(ErasureError, match=r"exists already.*`overwrite=True` \(`--overwrite`\)"):
        check(folder, overwrite=False)


@pytest.mark.parametrize("names", [("known",), ("marker", "diary"), ("diary",)])
def test_what_is_somebodys_own_is_never_replaced(tmp_path, names):
    with pytest.raises(ErasureError, match="holds something else"):
        check(make(tmp_path / "folder", *names))


def test_files_and_impossible_names_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ErasureError, match="something else"):
        check(tmp_path / "file")
    with pytest.raises(ErasureError, match="no folder one can write to"):
        check(tmp_path / "file" / "folder")
    with pytest.raises(ErasureError, match="Cannot write"):
        check(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission_are_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ErasureError, match="no folder one can write to"):
        check(tmp_path / "folder")


def test_what_is_written_can_be_read_by_others(tmp_path):
    with whole_folder(tmp_path / "result") as draft:
        (draft / "a.txt").write_text("a")
        (draft / "a.txt").chmod(0o600)
    assert (tmp_path / "result" / "a.txt").stat().st_mode & 0o777 == 0o644


def test_check_folder_accepts_an_empty_folder(tmp_path):
    check_folder(tmp_path, overwrite=False, marker="marker", known=())
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ErasureError, match="exists already"):
        check_folder(tmp_path, overwrite=False, marker="marker", known=())


def test_whole_file_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with whole_file(path) as draft:
        draft.write_text("one")
        assert not path.exists()

    def fail():
        with whole_file(path) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]
