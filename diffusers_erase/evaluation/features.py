"""How far pictures have moved, as a set or one by one: Fréchet, KID, CMMD, CLIPScore, SSIM."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffusers_erase.errors import ErasureError, first_line


WINDOW, SIGMA = 11, 1.5
"""SSIM's Gaussian window."""
BANDWIDTH = 10.0
"""CMMD's, between vectors of length one."""


def frechet(x: Tensor, y: Tensor) -> float:
    """|μx − μy|² + tr Sx + tr Sy − 2 tr (Sx Sy)^½: the distance of two Gaussians.

    The last trace is |Rx Ryᵀ|_* / √((n−1)(m−1)), with Rᵀ R the scatter of the centred features: the
    same without a root of eigenvalues that are rounding. It is biased upwards; the covariances want
    more pictures than features (do not report Inception's below 2,048 pictures; see `kid`).

    Args:
        x: features, pictures x channels; at least 2 pictures.
        y: those of other pictures, as many channels.
    """
    x, y = _rows(x, y)
    roots, total = [], (x.mean(0) - y.mean(0)).square().sum()
    for z in (x, y):
        root = torch.linalg.qr(z - z.mean(0), mode="r").R / math.sqrt(len(z) - 1)
        total += root.square().sum()
        roots.append(root)
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return max(0.0, float(total - 2 * cross))


def kid(x: Tensor, y: Tensor) -> float:
    """MMD² with k(x, y) = (x·y/d + 1)³, unbiased: it may be negative (KID, arXiv 1801.01401).

    One estimate from all pictures, at least 2 of each; other code averages over random subsets.
    """
    x, y = _rows(x, y)
    return _mmd(lambda product: (product / x.shape[1] + 1) ** 3, x, y, biased=False)


def cmmd(x: Tensor, y: Tensor, biased: bool = True) -> float:
    """1000 MMD² with k(x, y) = exp(−|x − y|² / 2σ²), σ = 10, of x/|x| (CMMD, arXiv 2401.09603).

    For embeddings of CLIP ViT-L/14 at 336 pixels, where it is about 10 |μx − μy|². As published it
    is biased: two samples of n from one distribution are up to 20/n apart (0.1 at 200), so compare
    equal n only, and read it beside the unbiased one.
    """
    x, y = (unit(z) for z in _rows(x, y))
    return 1000 * _mmd(lambda product: ((product - 1) / BANDWIDTH**2).exp(), x, y, biased=biased)


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """max(100 cos(E(picture), E(text)), 0), one for each picture and its text.

    Args:
        images: features of pictures, n x channels (`picture_features`).
        texts: those of the text of each, n x channels (`text_features`).
    """
    images, texts = _rows(images, texts, least=1)
    if len(images) != len(texts):
        raise ErasureError(f"{len(images)} pictures were to be scored with {len(texts)} texts.")
    return 100 * (unit(images) * unit(texts)).sum(1).clamp(min=0)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """(2μxμy + c1)(2σxy + c2) / (μx² + μy² + c1)(σx² + σy² + c2), a mean for each pair of pictures.

    Over Gaussian windows of 11 pixels that lie within the picture, σ = 1.5, c1 = .01², c2 = .03²
    (Wang et al. 2004), each channel for itself. torchmetrics counts windows over a reflected border
    too, and has other numbers.

    Args:
        x: pictures, n x channels x height x width, in 0 .. 1.
        y: as many of the same size.
    """
    x, y = _pairs(x, y)
    if min(x.shape[2:]) < WINDOW:
        raise ErasureError(
            f"SSIM looks through windows of {WINDOW} pixels; the pictures have only "
            f"{x.shape[2]} x {x.shape[3]}. Compare larger ones."
        )
    mx, my = _blurred(x), _blurred(y)
    xx, yy, xy = _blurred(x * x) - mx * mx, _blurred(y * y) - my * my, _blurred(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    same = (2 * mx * my + c1) * (2 * xy + c2)
    return (same / ((mx * mx + my * my + c1) * (xx + yy + c2))).mean((1, 2, 3))


def lpips(x: Tensor, y: Tensor, net: Literal["alex", "vgg", "squeeze"] = "alex") -> Tensor:
    """LPIPS (arXiv 1801.03924) of each pair of pictures, by the package of that name.

    At its first use that loads torchvision's weights of the network, over the network if they are
    not there.

    Args:
        x: colour pictures, n x 3 x height x width, in 0 .. 1.
        y: as many of the same size.
        net: AlexNet in the papers on erasing.

    Raises:
        ErasureError: the package or the weights are missing.
    """
    x, y = (2 * z.float() - 1 for z in _pairs(x, y))
    if x.shape[1] != 3:
        raise ErasureError(f"LPIPS sees three colours; these pictures have {x.shape[1]} channels.")
    with torch.no_grad():
        distance: Tensor = _perceptual(net).to(x.device)(x, y)
    return distance.flatten().double()


@torch.no_grad()
def picture_features(
    model: Any, processor: Any, pictures: Sequence[Image.Image], *, batch: int = 32, **how: Any
) -> Tensor:
    """E(picture) of CLIP or SigLIP, n x channels: float64, on the CPU, not of length one.

    Args:
        model: with `get_image_features`.
        processor: makes pixels of pictures; its image processor or the one of both.
        pictures: one or more.
        batch: how many at a time; more take more memory.
        how: goes to the processor; CMMD wants `do_center_crop=False` and a square `size`.
    """
    found = []
    for start in range(0, len(pictures), batch):
        chunk = [picture.convert("RGB") for picture in pictures[start : start + batch]]
        pixels = processor(images=chunk, return_tensors="pt", **how).to(model.device, model.dtype)
        found.append(_pooled(model.get_image_features(**pixels)))
    if not found:
        raise ErasureError("No pictures to look at; give one at least.")
    return torch.cat(found)


@torch.no_grad()
def text_features(
    model: Any, tokenizer: Any, texts: Sequence[str], *, truncate: bool = False
) -> Tensor:
    """E(text) of CLIP or SigLIP, n x channels: float64, on the CPU, not of length one.

    Padded to the model's length, as SigLIP was trained; CLIP does not look beyond the end.

    Args:
        model: with `get_text_features`.
        tokenizer: its own.
        texts: one or more.
        truncate: leave out what a text has beyond the model's length, which is refused otherwise.
    """
    if not texts:
        raise ErasureError("No texts to read; give one at least.")
    length = model.config.text_config.max_position_embeddings
    ids = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=truncate
    ).input_ids
    for text, tokens in zip(texts, ids, strict=True):
        if len(tokens) > length:
            raise ErasureError(
                f"The text '{text[:60]}...' has {len(tokens)} tokens and the model reads {length}; "
                "shorten it, or say truncate=True."
            )
    return _pooled(model.get_text_features(input_ids=torch.tensor(ids, device=model.device)))


def unit(x: Tensor) -> Tensor:
    """x/|x|, row by row.

    Raises:
        ErasureError: a row is zero.
    """
    length: Tensor = x.norm(dim=1, keepdim=True)
    if not length.all():
        raise ErasureError("Features are all zero for a picture or text; they have no direction.")
    return x / length


def optional(module: str, extra: str) -> ModuleType:
    """A package that one function needs and nobody else, imported when it is called.

    Raises:
        ErasureError: it is missing or broken; the message says how to install it.
    """
    try:
        return import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a broken binary raises the latter two
        raise ErasureError(
            f"This needs the package '{module}', which cannot be imported ({first_line(error)}); "
            f"install it with `pip install diffusers-erase[{extra}]`."
        ) from error


@lru_cache(maxsize=1)
def _perceptual(net: str) -> Any:
    package = optional("lpips", "perceptual")
    try:
        return package.LPIPS(net=net, verbose=False).eval()
    except (OSError, RuntimeError) as error:
        raise ErasureError(
            f"LPIPS cannot load the weights of '{net}': {first_line(error)}. Load them once where "
            "there is a network."
        ) from error


def _pooled(output: Any) -> Tensor:
    """The features: in an output object since transformers 5, bare before."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    found: Tensor = features.detach().double().cpu()
    return found


def _mmd(kernel: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, biased: bool) -> float:
    """E k(x, x') + E k(y, y') − 2 E k(x, y), for a kernel of the inner product."""

    def total(a: Tensor, b: Tensor) -> Tensor:  # by parts: n x m may be large
        return torch.stack([kernel(part @ b.T).sum() for part in a.split(2048)]).sum()

    def within(z: Tensor) -> Tensor:
        n = len(z)
        if biased:
            return total(z, z) / n**2
        return (total(z, z) - kernel(z.square().sum(1)).sum()) / (n * (n - 1))

    return float(within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y)))


def _blurred(x: Tensor) -> Tensor:
    """Gaussian means over all windows that lie within the picture."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = (-(offset**2) / (2 * SIGMA**2)).exp()
    weight = (weight / weight.sum()).expand(x.shape[1], 1, 1, WINDOW)
    rows = F.conv2d(x, weight, groups=x.shape[1])
    means: Tensor = F.conv2d(rows, weight.transpose(2, 3), groups=x.shape[1])
    return means


def _rows(x: Tensor, y: Tensor, *, least: int = 2) -> tuple[Tensor, Tensor]:
    for z in (x, y):
        if z.ndim != 2 or len(z) < least:
            raise ErasureError(
                f"Features must be n x channels with n of {least} or more; got {tuple(z.shape)}."
            )
        if not z.isfinite().all():
            raise ErasureError("Features contain numbers that are not finite; find out where from.")
    if x.shape[1] != y.shape[1]:
        raise ErasureError(
            f"Features of {x.shape[1]} and of {y.shape[1]} channels were to be compared; take "
            "both from one model."
        )
    return x.detach().double(), y.detach().double()


def _pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 4 or x.shape != y.shape or not len(x):
        raise ErasureError(
            "Pictures are compared in pairs, both n x channels x height x width; got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    for z in (x, y):
        if not ((z >= 0) & (z <= 1)).all():
            raise ErasureError("Pictures must be numbers from 0 to 1; some here are not.")
    return x.detach().double(), y.detach().double()
