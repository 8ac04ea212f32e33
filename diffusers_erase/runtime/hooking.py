"""y = W x + sum_i s_i B_i A_i x: erasers on layers whose weights cannot be rewritten."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.models.architectures import linear
from diffusers_erase.runtime.baking import rewritable
from diffusers_erase.runtime.fused_projections import fused_weights
from diffusers_erase.runtime.loaded_eraser import (
    Change,
    LoadedEraser,
    Planning,
    Sums,
    by_path,
    factors_of,
)


NULL_WITHIN = 0.03
"""Relative distance within which text states are the empty prompt's: they differ by the batch and
the precision they were computed in, some 1 % in bfloat16; the nearest words are 7 % away."""


@dataclass
class Term:
    """Erasers in one layer; its tensors move to the device of its input."""

    A: Tensor
    B: Tensor
    null: Tensor | None = None
    """Text states, tokens x width, of the rows of a batch that it passes over."""

    def added(self, x: Tensor, output: Tensor) -> Tensor:
        """The output with the term B A x, for x of shape ... x in, in the output's precision.

        Rows of x (batch x tokens x in) that are the null states keep their output bit for bit.
        """
        if self.A.device != x.device:
            self.A, self.B = self.A.to(x.device), self.B.to(x.device)
        term = (x.to(self.A.dtype) @ self.A.T) @ self.B.T
        changed = output + term.to(output.dtype)
        if self.null is None or x.shape[1:] != self.null.shape:
            return changed
        if self.null.device != x.device:
            self.null = self.null.to(x.device)
        apart = (x.float() - self.null) * (self.null != 0).any(-1, keepdim=True)  # not masked
        is_null = apart.square().sum((1, 2)) <= NULL_WITHIN**2 * self.null.square().sum()
        return torch.where(is_null[:, None, None], output, changed)


class Addition:
    """A forward hook that adds its terms to a layer's output; a copy of the layer has its own."""

    def __init__(self) -> None:
        self.terms: list[Term] = []

    def __call__(self, _: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        """The layer's output with all terms, in its own precision."""
        for term in self.terms:
            output = term.added(given[0], output)
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
        for null, group in _by_null(x for x in loaded.values() if x.strength):
            sums = Sums()
            for path, erasers in by_path(denoiser, group).items():
                layer, terms = wanted.setdefault(path, (linear(denoiser, path), []))
                own = layer.weight.detach() if rewritable(layer) else None
                base = planning.bases.get(path, own)
                A, B = factors_of(sums(erasers), path, layer, base)
                terms.append(Term(A, B, null))
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


def _by_null(
    erasers: Iterable[LoadedEraser],
) -> list[tuple[Tensor | None, list[LoadedEraser]]]:
    """Text states that are passed over, and the erasers that do so."""
    groups: list[tuple[Tensor | None, list[LoadedEraser]]] = []
    for eraser in erasers:
        same = (group for null, group in groups if _equal(null, eraser.null))
        group = next(same, None)
        if group is None:
            groups.append((eraser.null, group := []))
        group.append(eraser)
    return groups


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one.cpu(), other.cpu())
