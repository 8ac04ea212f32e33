"""What readers of the edited text can still tell: the concept from what it is answered as."""

import math
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Leakage:
    """Shares of held-back prompts that a reader assigns rightly; 0.5 is guessing.

    An erasure that leaves nothing of the concept, I(Z; A) = 0 with Z what the layers read and A
    concept or target (Perfect Erasure Functions, arXiv 2503.20098), has 0.5 for every reader.
    """

    linear: float
    mlp: float
    prompts: int
    """How many of each side there were."""

    @property
    def bits(self) -> float:
        """What the better reader proves of I(Z; A), 0 .. 1 bit: 1 - h(accuracy), by Fano."""
        p = min(max(self.linear, self.mlp, 0.5), 1.0)
        return 1 + sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)

    @property
    def bound(self) -> float:
        """H(X|A) = log2 prompts: the most that a perfect erasure may keep of I(Z; X).

        All prompts differ and are equally likely, so that H(X) is one bit more: perfect erasure
        costs that bit and no other (arXiv 2503.20098, disjoint supports).
        """
        return math.log2(self.prompts)


def leakage(
    pipe: Any, concept: Concept, target: str, *, eraser: EraserAdapter | None = None, seed: int = 0
) -> Leakage:
    """Train readers of the keys and values to tell the concept's prompts from the target's.

    Each sees all layers' keys and values, averaged over the tokens, in three quarters of the
    prompts, and is asked about the rest, four times.

    Args:
        pipe: the base, without erasers.
        concept: its prompts, and the same about the target.
        target: a word.
        eraser: that is put between text and readers; None for the base.
        seed: of the readers.

    Raises:
        ErasureError: the concept has fewer prompts than `FOLDS`, or the target is the concept.
    """
    prompts = [p for p in dict.fromkeys(concept.example_prompts()) if p.name == concept.name]
    if len(prompts) < FOLDS:
        raise ErasureError(f"Readers need {FOLDS} different prompts; '{concept.name}' has fewer.")
    if concept.is_named_by(target):
        raise ErasureError(f"The target {target!r} is the concept itself; choose another one.")
    both = ([p.text for p in prompts], [p.about(target) for p in prompts])
    X = torch.stack([read(pipe, texts, eraser) for texts in both], 1)
    right = torch.zeros(2)
    for fold in range(FOLDS):
        asked = torch.arange(len(prompts)) % FOLDS == fold
        scale = X[~asked].flatten(0, 1).std(0).clamp(min=1e-8)
        learnt, held = ((x - X[~asked].mean((0, 1))) / scale for x in (X[~asked], X[asked]))
        for k, reader in enumerate((_linear(learnt), _mlp(learnt, seed + fold))):
            concept_side, target_side = reader(held.flatten(0, 1)).view(-1, 2).sign().unbind(1)
            right[k] += (1 + (concept_side - target_side) / 2).sum()  # a tie is a guess
    linear, mlp = (right / (2 * len(prompts))).tolist()
    return Leakage(linear, mlp, len(prompts))


@torch.no_grad()
def read(pipe: Any, prompts: Sequence[str], eraser: EraserAdapter | None = None) -> Tensor:
    """Keys and values of all layers, averaged over the tokens; prompts x (sum of channels)."""
    model = Model.of(pipe)
    states = model.encode(prompts).float().cpu().mean(1)
    unet = model.denoiser
    reached = set(eraser.paths(unet)) if eraser else set[str]()
    found = []
    for path, layer in text_layers(unet).items():
        W = layer.weight.detach().float().cpu()
        found.append(states @ (W + eraser.delta(path, W) if eraser and path in reached else W).T)
    return torch.cat(found, 1)


def _linear(X: Tensor, ridge: float = 1e-2) -> Any:
    """Ridge regression on ±1 in the span of the prompts; X is prompts x 2 x features."""
    rows = X.flatten(0, 1).double()
    label = torch.tensor([1.0, -1.0], dtype=rows.dtype).repeat(len(X))
    kernel = rows @ rows.T
    scale = kernel.diagonal().mean().clamp(min=1e-12)
    kernel += ridge * scale * torch.eye(len(kernel), dtype=kernel.dtype)
    weight = rows.T @ torch.linalg.solve(kernel, label)
    return lambda x: x.double() @ weight


def _mlp(X: Tensor, seed: int, *, hidden: int = 32, steps: int = 150) -> Any:
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
