"""One linear change of the text for all layers, and its best factors of a given rank."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusers_erase.crossattention import Factors


def text_edit(
    E: Tensor,
    V: Tensor,
    R: Tensor,
    *,
    spare: float = 3.0,
    ridge: float = 1e-4,
    hold: Tensor | None = None,
) -> Tensor:
    """argmin_P  mean |(I + P) e - v|^2 + κ mean |P r|^2 + λ |P|^2,   P H^T = 0

    = (V - E)^T E (E^T E + κ R^T R + λ I)^-1, UCE's edit (arXiv 2308.14761): with W' = W (I + P)
    every layer W that reads the text reads states e as it read v before, and r as ever.

    Args:
        E: states of the erased prompts, ... x width.
        V: what each of them is to be read as, of the same shape.
        R: states that are to be read as before, ... x width; may be empty.
        spare: κ, how much R weighs against E.
        ridge: λ, relative to the mean square of what is solved for.
        hold: orthonormal columns, width x n, that P answers with exactly nothing.

    Returns:
        P, width x width, float64.
    """
    E, V, R = (x.detach().double().cpu().reshape(-1, x.shape[-1]) for x in (E, V, R))
    Q = torch.zeros(E.shape[1], 0, dtype=E.dtype) if hold is None else hold.to(E)
    free = torch.eye(E.shape[1], dtype=E.dtype) - Q @ Q.T
    seen, spared = E @ free, R @ free
    gram = seen.T @ seen / len(E) + spare * spared.T @ spared / max(1, len(R))
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    P: Tensor = torch.linalg.solve(gram, seen.T @ (V - E) / len(E)).T @ free
    return P


def factors_of(P: Tensor, layers: Mapping[str, nn.Linear], rank: int) -> dict[str, Factors]:
    """W P as B A for every layer, with the `rank` largest singular values of P (Eckart-Young).

    Exact where P has no higher rank. Float32, on the CPU.
    """
    U, sizes, Vh = torch.linalg.svd(P)
    left, right = U[:, :rank] * sizes[:rank].sqrt(), sizes[:rank, None].sqrt() * Vh[:rank]
    return {
        path: (right.float(), (layer.weight.detach().double().cpu() @ left).float())
        for path, layer in layers.items()
    }
