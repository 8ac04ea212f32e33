"""Adds `load_erasure` and its family to diffusers' pipelines, now or when they are imported.

Names are only added, never replaced, and `uninstall()` takes them away.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any
from warnings import warn


METHODS = (
    "load_erasure",
    "unload_erasure",
    "unload_erasures",
    "list_erasures",
    "set_erasure_strength",
    "verify_erasures",
    "export_erased",
    "erasures_disabled",
)

CLASSES = {
    "diffusers.pipelines.pipeline_utils": "DiffusionPipeline",
    "diffusers.modular_pipelines.modular_pipeline": "ModularPipeline",
}
"""Module -> the pipeline class in it that gets the methods."""


def install() -> None:
    """Bind the methods to the pipeline classes that are imported, to others as soon as they are.

    Idempotent. Waiting for the import keeps `import diffusers_erase` quick, and working where
    diffusers' pipelines cannot be imported at all (a torchvision built for another torch, for
    example).
    """
    for module in CLASSES:
        if module in sys.modules:
            _bind(sys.modules[module])
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def uninstall() -> None:
    """Take every method away again; erasers that are loaded stay in force."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Watcher)]
    for module, name in CLASSES.items():
        pipeline = getattr(sys.modules.get(module), name, None)
        for method in METHODS:
            if _is_ours(vars(pipeline).get(method) if pipeline else None):
                delattr(pipeline, method)


class _Watcher:
    """Finder of modules that binds a pipeline class right after its module has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The ordinary spec of a watched module, its loader followed by `_bind`."""
        if fullname not in CLASSES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _bind(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _bind(module: ModuleType) -> None:
    pipeline = getattr(module, CLASSES[module.__name__], None)
    for method in METHODS:
        if pipeline is None:
            return
        found = getattr(pipeline, method, None)
        if found is None:
            setattr(pipeline, method, _stub(method))
        elif not _is_ours(found):
            warn(
                f"{pipeline.__name__} has a method {method!r} of its own; "
                f"use diffusers_erase.{method}(pipe, ...).",
                stacklevel=2,
            )


def _stub(method: str) -> Callable[..., Any]:
    """A method that imports its function at first use."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = getattr(import_module("diffusers_erase.runtime.plugin"), method)
        return function(self, *args, **kwargs)

    call.__name__ = call.__qualname__ = method
    call.__doc__ = f"See `diffusers_erase.{method}`."
    call.__module__ = __name__
    return call


def _is_ours(method: Any) -> bool:
    return getattr(method, "__module__", None) == __name__
