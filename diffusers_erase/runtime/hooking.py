"""y = W x + sum_i s_i B_i A_i x: erasers on layers whose weights cannot be rewritten."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.models.architectures import linear
from diffusers_erase.runtime.fused_projections import fused_weights
from diffusers_erase.runtime.loaded_eraser import Change, LoadedEraser, Planning, factors_of


@dataclass
class Term:
    """One eraser in one layer; its factors move to the device of its input."""

    A: Tensor
    B: Tensor
    strength: float

    def __call__(self, x: Tensor) -> Tensor:
        """The term s B A x, for x of shape ... x in."""
        if self.A.device != x.device:
            self.A, self.B = self.A.to(x.device), self.B.to(x.device)
        return self.strength * ((x.to(self.A.dtype) @ self.A.T) @ self.B.T)


class Addition:
    """A forward hook that adds its terms to a layer's output; a copy of the layer has its own."""

    def __init__(self) -> None:
        self.terms: list[Term] = []

    def __call__(self, _: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        """The layer's output with all terms, in its own precision."""
        for term in self.terms:
            output = output + term(given[0]).to(output.dtype)
        return output


Terms = dict[str, tuple[nn.Linear, list[Term]]]
"""Path -> layer, and the terms that are added to its output."""


@dataclass
class Hooked:
    """Backend that adds erasers to the output of layers, by one forward hook each."""

    additions: dict[str, Addition] = field(default_factory=dict)
    """Path -> the hook on the layer."""

    def plan(
        self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser], planning: Planning
    ) -> Change:
        """Compute the terms of every layer that has a hook or gets one."""
        wanted: Terms = {path: (linear(denoiser, path), []) for path in self.additions}
        for eraser in loaded.values():
            for path in eraser.adapter.paths(denoiser) if eraser.strength else ():
                layer, terms = wanted.setdefault(path, (linear(denoiser, path), []))
                A, B = factors_of(eraser, path, layer, planning.bases.get(path))
                terms.append(Term(A, B, eraser.strength))
        known = {path: addition.terms for path, addition in self.additions.items()}
        former = {path: (layer, known.get(path, [])) for path, (layer, _) in wanted.items()}
        return Change(partial(self._set, wanted), partial(self._set, former))

    def _set(self, wanted: Terms) -> None:
        """Hook layers that get terms, and unhook those that have none left."""
        for path, (layer, terms) in wanted.items():
            if terms and path not in self.additions:
                addition = Addition()
                layer.register_forward_hook(addition)
                self.additions[path] = addition
                if "torch._dynamo" in sys.modules:
                    # a graph that was compiled without a hook would pass the first one over
                    torch._dynamo.reset()
            if path in self.additions:
                self.additions[path].terms = terms
                if not terms:
                    hooks, addition = layer._forward_hooks, self.additions.pop(path)
                    for key in [key for key, hook in hooks.items() if hook is addition]:
                        del hooks[key]

    def bases(self) -> dict[str, Tensor]:
        """No weights: none is written."""
        return {}

    def acting(self, denoiser: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, float]:
        """Name -> share of an eraser's layers that have its hook, and are not fused."""
        found, fused = {}, fused_weights(denoiser)
        for name, eraser in loaded.items():
            paths = eraser.adapter.paths(denoiser) if eraser.strength else ()
            hooked = [
                path not in fused
                and self.additions.get(path) in linear(denoiser, path)._forward_hooks.values()
                for path in paths
            ]
            found[name] = sum(hooked) / len(hooked) if hooked else 1.0
        return found
