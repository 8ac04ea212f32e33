"""Classifiers on keys and values try to tell the concept from its target."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_erase.concepts import Concept
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import text_layers
from diffusers_erase.models.model import Model


FOLDS = 4
"""Folds of the cross-validation."""

Classifier = Callable[[Tensor], Tensor]
"""Features, n x channels -> scores, n: positive for the concept, negative for the target."""


@dataclass(frozen=True)
class Leakage:
    """Accuracies of classifiers on held-out prompts; 0.5 is guessing.

    An erasure that leaves nothing of the concept has I(Z; A) = 0, with Z the keys and values and A
    either concept or target (Perfect Erasure Functions, arXiv 2503.20098), and an accuracy of 0.5
    for every classifier.
    """

    linear: float
    """Accuracy of ridge regression."""
    mlp: float
    """Accuracy of a network with one hidden layer."""
    prompts: int
    """Number of prompts about the concept, and of prompts about the target."""

    @property
    def bits(self) -> float:
        """1 - h(accuracy): the lower bound of I(Z; A), 0 .. 1 bit, by Fano's inequality."""
        p = min(max(self.linear, self.mlp, 0.5), 1.0)
        return 1 + sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)

    @property
    def bound(self) -> float:
        """H(X|A) = log2 prompts: the most that a perfect erasure may keep of I(Z; X).

        All prompts differ and are equally likely, so H(X) is one bit more: perfect erasure costs
        that bit and nothing else (arXiv 2503.20098, disjoint supports).
        """
        return math.log2(self.prompts)


def leakage(
    pipe: Any, concept: Concept, target: str, *, eraser: EraserAdapter | None = None, seed: int = 0
) -> Leakage:
    """Train classifiers to tell the concept's prompts from the target's by keys and values.

    Their input is the keys and values of all layers, averaged over the tokens. Cross-validation
    with `FOLDS` folds.

    Args:
        pipe: the base model's pipeline, without erasers.
        concept: its prompts, and the same prompts about the target.
        target: a word.
        eraser: whose keys and values are taken; None for those of the base model.
        seed: of the classifiers.

    Raises:
        ErasureError: the concept has fewer prompts than `FOLDS`, or the target is the concept.
    """
    prompts = [p for p in dict.fromkeys(concept.example_prompts()) if p.name == concept.name]
    if len(prompts) < FOLDS:
        raise ErasureError(
            f"Leakage needs {FOLDS} different prompts; '{concept.name}' has {len(prompts)}."
        )
    if concept.is_named_by(target):
        raise ErasureError(f"The target {target!r} is the concept itself; choose another one.")
    both = ([p.text for p in prompts], [p.about(target) for p in prompts])
    X = torch.stack([keys_and_values(pipe, texts, eraser) for texts in both], 1)
    right = torch.zeros(2)
    for fold in range(FOLDS):
        held_out = torch.arange(len(prompts)) % FOLDS == fold
        mean, scale = X[~held_out].mean((0, 1)), X[~held_out].flatten(0, 1).std(0).clamp(min=1e-8)
        training, test = ((x - mean) / scale for x in (X[~held_out], X[held_out]))
        for k, classify in enumerate((_linear(training), _mlp(training, seed + fold))):
            on_concept, on_target = classify(test.flatten(0, 1)).view(-1, 2).sign().unbind(1)
            right[k] += (1 + (on_concept - on_target) / 2).sum()  # a score of 0 is half right
    linear, mlp = (right / (2 * len(prompts))).tolist()
    return Leakage(linear, mlp, len(prompts))


@torch.no_grad()
def keys_and_values(
    pipe: Any, prompts: Sequence[str], eraser: EraserAdapter | None = None
) -> Tensor:
    """Keys and values of all layers, averaged over the tokens; prompts x (sum of channels)."""
    model = Model.of(pipe)
    states = model.encode(prompts).float().cpu().mean(1)
    reached = set(eraser.paths(model.denoiser)) if eraser else set[str]()
    outputs = []
    for path, layer in text_layers(model.denoiser).items():
        W = layer.weight.detach().float().cpu()
        outputs.append(states @ (W + eraser.delta(path, W) if eraser and path in reached else W).T)
    return torch.cat(outputs, 1)


def _linear(X: Tensor, ridge: float = 1e-2) -> Classifier:
    """Ridge regression on ±1 in the span of the prompts; X is prompts x 2 x features."""
    rows = X.flatten(0, 1).double()
    label = torch.tensor([1.0, -1.0], dtype=rows.dtype).repeat(len(X))
    kernel = rows @ rows.T
    scale = kernel.diagonal().mean().clamp(min=1e-12)
    kernel += ridge * scale * torch.eye(len(kernel), dtype=kernel.dtype)
    weight = rows.T @ torch.linalg.solve(kernel, label)
    return lambda x: x.double() @ weight


def _mlp(X: Tensor, seed: int, *, hidden: int = 32, steps: int = 150) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(X.shape[2], hidden), nn.ReLU(), nn.Linear(hidden, 1))
    rows = X.flatten(0, 1)
    label = torch.tensor([1.0, 0.0]).repeat(len(X))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3, weight_decay=1e-4)
    for _ in range(steps):
        loss = nn.functional.binary_cross_entropy_with_logits(net(rows)[:, 0], label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return lambda x: net(x)[:, 0].detach()
