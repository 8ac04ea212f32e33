import json

import pytest

from diffusers_erase.errors import ErasureError
from diffusers_erase.storage.results import ResultsLog, key_of


def test_what_was_found_is_found_again_by_every_process(tmp_path):
    first, second = ResultsLog(tmp_path, rank=0), ResultsLog(tmp_path, rank=1)
    first.add({"a": {"x": 1}})
    second.add({"b": [1, 2]})
    assert "b" not in first
    first.refresh()
    assert first["b"] == [1, 2]
    assert ResultsLog(tmp_path).known == {"a": {"x": 1}, "b": [1, 2]}


@pytest.mark.parametrize("lost", range(1, 25))
def test_a_line_that_was_cut_off_is_found_anew_and_harms_no_other(tmp_path, lost):
    ResultsLog(tmp_path).add({"a": 1, "b": 2})
    path = next(tmp_path.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-lost])
    again = ResultsLog(tmp_path)
    assert again["a"] == 1
    again.add({"b": 2, "c": 3})
    assert ResultsLog(tmp_path).known == {"a": 1, "b": 2, "c": 3}


def test_without_a_folder_it_is_kept_in_memory():
    journal = ResultsLog()
    journal.add({"a": 1})
    assert journal["a"] == 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ErasureError, match="Cannot keep what was found"):
        ResultsLog(tmp_path / "file" / "folder").add({"a": 1})


def test_keys_tell_apart_what_differs_and_nothing_else():
    assert key_of(a=1, b=2) == key_of(b=2, a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1")}) == 4
    assert json.dumps(key_of(a={"b": (1, 2)})) == json.dumps(key_of(a={"b": [1, 2]}))


def test_results_log_passes_over_lines_that_are_no_entries(tmp_path):
    ResultsLog(tmp_path).add({"a": 1})
    with next(tmp_path.glob("*.jsonl")).open("a") as file:
        file.write('5\nnull\n[]\n"found"\n{"key": "b"}\n')
    assert ResultsLog(tmp_path).known == {"a": 1}
