"""Every example is short and runs on the playground as a stranger would run it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
LEAVES = {
    "erase_an_object.py": "erase-car.png",
    "measure_and_publish.py": "measured/index.html",
    "stack_and_share.py": "stack.png",
}
QUICK = {"measure_and_publish.py": ["--pictures", "2"]}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    out = ["--out", tmp_path / "out"] if path.name in LEAVES else []
    done = subprocess.run(
        [sys.executable, path, "--steps", "2", *QUICK.get(path.name, []), *out],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if path.name in LEAVES:
        assert (tmp_path / "out" / LEAVES[path.name]).is_file()
    if path.name == "measure_and_publish.py":
        assert "counted anew from its raw lines: True" in done.stdout
        assert "| attack inversion |" in done.stdout
    if path.name == "stack_and_share.py":
        assert "bit for bit: True" in done.stdout
        assert re.search("differs by [01] of 255", done.stdout)


def test_they_are_short():
    assert len(EXAMPLES) >= 3
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES)
