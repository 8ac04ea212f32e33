"""y = W x + sum_i s_i B_i A_i x: erasers beside weights that cannot be rewritten."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.models.architectures import linear
from diffusers_erase.runtime.fused_projections import fused_weights
from diffusers_erase.runtime.loaded_eraser import LoadedEraser, factors_of


@dataclass
class Term:
    """One eraser's share in one layer; factors move to where they are needed."""

    A: Tensor
    B: Tensor
    strength: float

    def __call__(self, x: Tensor) -> Tensor:
        """S B A x, for x ... x in."""
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


Plan = dict[str, tuple[nn.Linear, list[Term]]]


@dataclass
class Hooked:
    """The hooks in place, by path."""

    additions: dict[str, Addition] = field(default_factory=dict)

    def plan(
        self, unet: nn.Module, loaded: Mapping[str, LoadedEraser], pristine: Mapping[str, Tensor]
    ) -> Plan:
        """Path -> layer and its terms, so that these erasers are in force; nothing is changed.

        `pristine` are the weights of layers that other erasers are written into.
        """
        plans: Plan = {path: (linear(unet, path), []) for path in self.additions}
        for eraser in loaded.values():
            for path in eraser.adapter.paths(unet) if eraser.strength else ():
                layer, terms = plans.setdefault(path, (linear(unet, path), []))
                A, B = factors_of(eraser, path, layer, pristine.get(path))
                terms.append(Term(A, B, eraser.strength))
        return plans

    def apply(self, plans: Plan) -> None:
        """Hang up what is missing and take down what is idle, or leave all as it was."""
        known = {path: addition.terms for path, addition in self.additions.items()}
        fresh = [path for path, (_, terms) in plans.items() if terms and path not in known]
        try:
            for path in fresh:
                self.additions[path] = Addition()
                plans[path][0].register_forward_hook(self.additions[path])
        except BaseException:
            for path in set(self.additions) - set(known):
                _take_down(plans[path][0], self.additions.pop(path))
            raise
        for path, (layer, terms) in plans.items():
            self.additions[path].terms = terms
            if not terms:
                _take_down(layer, self.additions.pop(path))
        if fresh and "torch._dynamo" in sys.modules:
            # a graph that was compiled without a hook would pass the first one over
            torch._dynamo.reset()

    def acting(self, unet: nn.Module, loaded: Mapping[str, LoadedEraser]) -> dict[str, float]:
        """Name -> share of an eraser's layers that are used, and have its hook."""
        found, fused = {}, fused_weights(unet)
        for name, eraser in loaded.items():
            paths = eraser.adapter.paths(unet) if eraser.strength else ()
            hung = [
                path not in fused and _hangs(linear(unet, path), self.additions.get(path))
                for path in paths
            ]
            found[name] = sum(hung) / len(hung) if hung else 1.0
        return found


def _hangs(layer: nn.Linear, addition: Addition | None) -> bool:
    return any(hook is addition for hook in layer._forward_hooks.values())


def _take_down(layer: nn.Linear, addition: Addition) -> None:
    hooks = layer._forward_hooks
    for key in [key for key, hook in hooks.items() if hook is addition]:
        del hooks[key]
