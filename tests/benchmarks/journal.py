"""Measurements that go on where they were stopped: one line of JSON each, in a file."""

import json
from pathlib import Path
from typing import Any


def written(path: Path) -> list[Any]:
    """The lines so far; makes the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def write(path: Path, *lines: Any) -> None:
    """Further lines, at the end."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
