"""Concept erasure for diffusers, as adapters: `pipe.load_erasure("user/erase-vangogh")`.

Importing this package adds the family of `load_erasure` to diffusers' pipelines. It is light:
neither torch nor diffusers is imported before somebody needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffusers_erase.binding import install, uninstall
from diffusers_erase.errors import ErasureError


if TYPE_CHECKING:
    from diffusers_erase.concepts import Concept, Vocabulary
    from diffusers_erase.editing.recipes import Edit
    from diffusers_erase.eraser.adapter import EraserAdapter
    from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
    from diffusers_erase.evaluation.probe import probe
    from diffusers_erase.making.api import erase
    from diffusers_erase.making.debiasing import debias
    from diffusers_erase.making.priors import TextPrior
    from diffusers_erase.making.stacked import stack
    from diffusers_erase.making.trying import NotErasedError
    from diffusers_erase.runtime.plugin import (
        erasures_disabled,
        export_erased,
        list_erasures,
        load_erasure,
        set_erasure_strength,
        unload_erasure,
        unload_erasures,
        verify_erasures,
    )
    from diffusers_erase.storage.hub import find_erasers
    from diffusers_erase.training.adaptive import Adaptive
    from diffusers_erase.training.recipes import Recipe
    from diffusers_erase.training.targets import Fixed, Nearest
    from diffusers_erase.training.trainer import Step, train
    from diffusers_erase.training.trial import Trial


_ROOMS = {
    "Adaptive": "training.adaptive",
    "Concept": "concepts",
    "Edit": "editing.recipes",
    "ErasedConcept": "eraser.config",
    "EraserAdapter": "eraser.adapter",
    "EraserConfig": "eraser.config",
    "Fixed": "training.targets",
    "Nearest": "training.targets",
    "NotErasedError": "making.trying",
    "Recipe": "training.recipes",
    "Step": "training.trainer",
    "TextPrior": "making.priors",
    "Trial": "training.trial",
    "Vocabulary": "concepts",
    "debias": "making.debiasing",
    "erase": "making.api",
    "erasures_disabled": "runtime.plugin",
    "export_erased": "runtime.plugin",
    "find_erasers": "storage.hub",
    "list_erasures": "runtime.plugin",
    "load_erasure": "runtime.plugin",
    "probe": "evaluation.probe",
    "set_erasure_strength": "runtime.plugin",
    "stack": "making.stacked",
    "train": "training.trainer",
    "unload_erasure": "runtime.plugin",
    "unload_erasures": "runtime.plugin",
    "verify_erasures": "runtime.plugin",
}

__all__ = [
    "Adaptive",
    "Concept",
    "Edit",
    "ErasedConcept",
    "EraserAdapter",
    "EraserConfig",
    "ErasureError",
    "Fixed",
    "Nearest",
    "NotErasedError",
    "Recipe",
    "Step",
    "TextPrior",
    "Trial",
    "Vocabulary",
    "debias",
    "erase",
    "erasures_disabled",
    "export_erased",
    "find_erasers",
    "install",
    "list_erasures",
    "load_erasure",
    "probe",
    "set_erasure_strength",
    "stack",
    "train",
    "uninstall",
    "unload_erasure",
    "unload_erasures",
    "verify_erasures",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


install()
