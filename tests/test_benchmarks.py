"""Every benchmark script is imported, so that none is left behind when a symbol is renamed."""

import importlib
import sys
from pathlib import Path

import pytest


SCRIPTS = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("*.py"))


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    """Scripts import one another by their plain names."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    yield
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_imports_and_says_how_it_is_run(name):
    script = importlib.import_module(name)
    if hasattr(script, "main"):
        assert f"python tests/benchmarks/{name}.py" in script.__doc__
