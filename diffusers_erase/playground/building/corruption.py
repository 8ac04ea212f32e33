"""Corrupted pictures that show no whole object; the judge learns to reject them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def corrupted(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The pictures, B x 3 x 64 x 64 in -1 .. 1, corrupted until they show no object.

    One of six ways is drawn for the whole batch: warped, shuffled tiles, blurred, drowned in noise,
    smooth noise, one blank colour. Shapes and range stay.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def gauss(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(pictures)

    count, size = len(pictures), pictures.shape[-1]
    kind = int(torch.randint(6, (), generator=generator))
    if kind == 0:
        push = gauss(count, 2, 9, 9) * uniform(0.16, 0.4)
        push = F.interpolate(push, size=(size, size), mode="bicubic", align_corners=True)
        axis = torch.linspace(-1, 1, size).to(pictures)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        grid = torch.stack([x, y], -1) + push.permute(0, 2, 3, 1)
        return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=True)
    if kind == 1:
        tiles = F.unfold(pictures, 8, stride=8)
        order = torch.randperm(tiles.shape[-1], generator=generator)
        return F.fold(tiles[..., order], size, 8, stride=8)
    if kind == 2:
        small = F.adaptive_avg_pool2d(pictures, int(uniform(2, 6)))
        return F.interpolate(small, size=size, mode="bilinear")
    if kind == 3:
        noise = gauss(*pictures.shape) * uniform(0.6, 1.4)
        return (pictures * uniform(0.0, 0.25) + noise).clamp(-1, 1)
    if kind == 4:
        cells = int(uniform(2, 33))
        noise = gauss(count, 3, cells, cells) * uniform(0.2, 1.2)
        return F.interpolate(noise, size=size, mode="bilinear").clamp(-1, 1)
    level = torch.rand(count, 3, 1, 1, generator=generator).to(pictures) * 2 - 1
    speckle = gauss(*pictures.shape) * uniform(0.0, 0.06)
    return (level + speckle).clamp(-1, 1)


def degraded(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The pictures with a little blur, noise or mirroring: they still show their objects."""
    dice = torch.rand(3, generator=generator)
    if dice[0] < 0.5:
        pictures = pictures.flip(3)
    if dice[1] < 0.4:
        pictures = 0.5 * pictures + 0.5 * F.avg_pool2d(pictures, 3, 1, 1)
    return pictures + torch.randn_like(pictures) * 0.08 * dice[2].item()
