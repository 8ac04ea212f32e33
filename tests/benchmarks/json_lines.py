"""Results as lines of JSON in a file, to which a stopped benchmark appends when it is resumed."""

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[Any]:
    """The lines so far; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def append_lines(path: Path, *lines: Any) -> None:
    """Append lines to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
