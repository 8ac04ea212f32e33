"""House rules that no linter knows: documented, small, printed by the command line alone."""

import ast
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


PACKAGE = Path(__file__).parent.parent / "diffusers_erase"
MODULES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = PACKAGE / "cli"
"""A command's options are arguments, and heavy imports wait inside commands."""


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.fixture(scope="module", params=MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def module(request):
    return request.param, ast.parse(request.param.read_text())


def test_public_things_are_documented(module):
    path, tree = module
    assert ast.get_docstring(tree), path
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in [n for scope in (tree, *classes) for n in scope.body]:
        marks = [getattr(mark, "id", "") for mark in getattr(node, "decorator_list", ())]
        if "overload" in marks:  # its implementation is
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name}"


def test_functions_and_modules_stay_small(module):
    path, tree = module
    drawings = path == PACKAGE / "playground" / "drawing.py"  # one after the other
    limit = 700 if drawings else 400
    assert len(path.read_text().splitlines()) <= limit
    for node in functions(tree):
        longest = 140 if path.parent == COMMANDS else 80
        first = node.body[0]
        documentation = first.end_lineno - first.lineno if ast.get_docstring(node) else 0
        assert node.end_lineno - node.lineno - documentation < longest, f"{path}: {node.name}"
        most = 30 if path.parent == COMMANDS else 18 if node.name == "erase" else 13
        assert len(node.args.args + node.args.kwonlyargs) <= most, f"{path}: {node.name}"


def test_imports_stand_at_the_top(module):
    path, tree = module
    if path.parent != COMMANDS:
        for node in functions(tree):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{path}: {node.name}"


def test_no_pickle_and_no_remote_code(module):
    path, tree = module
    text = path.read_text()
    assert "trust_remote_code" not in text
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "joblib"} & set(names), path
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, path


def test_floors_are_the_versions_that_are_tested():
    """What `pyproject.toml` allows at least is what `make test-lowest` installs."""
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (root / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    tested = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    for wanted in map(Requirement, asked):
        for floor in wanted.specifier:
            assert tested[canonicalize_name(wanted.name)] == Version(floor.version), wanted
