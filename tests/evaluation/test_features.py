import math
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation import features
from diffusers_erase.evaluation.features import (
    clip_score,
    cmmd,
    frechet,
    kid,
    lpips,
    optional,
    picture_features,
    ssim,
    text_features,
)


def rows(n, d, seed=0):
    """Features whose channels are not independent."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix / d**0.5


def pictures(n=2, size=24, channels=3, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_of_a_shift_is_its_square():
    x = rows(50, 6)
    assert frechet(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet(x, x + 2) == pytest.approx(6 * 4)


def test_the_frechet_distance_of_a_scaling_is_known():
    """(1 − a)² (|μ|² + tr S), since the covariances commute."""
    x = rows(50, 6) + 1
    total = x.mean(0).square().sum() + x.var(0).sum()
    assert frechet(x, 3 * x) == pytest.approx(4 * float(total))


def test_the_frechet_distance_on_a_line_is_that_of_means_and_deviations():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [11.0]])
    assert frechet(x, y) == pytest.approx((1 - 7) ** 2 + (math.sqrt(2) - math.sqrt(12)) ** 2)


def test_the_frechet_distance_is_the_one_of_eigenvalues():
    """Where neither covariance knows the other's axes: 2 Σ √λ(Sx^½ Sy Sx^½)."""
    x = rows(80, 5)
    y = rows(70, 5, 1) @ torch.linspace(0.5, 2, 5, dtype=torch.float64).diag() + 0.3
    S, T = x.T.cov(), y.T.cov()
    values, axes = torch.linalg.eigh(S)
    root = axes @ values.clamp(min=0).sqrt().diag() @ axes.T
    cross = torch.linalg.eigvalsh(root @ T @ root).clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + S.trace() + T.trace() - 2 * cross
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-10)
    assert frechet(y, x) == pytest.approx(float(expected), rel=1e-10)


def test_the_frechet_distance_stands_fewer_pictures_than_channels():
    x = rows(5, 40)
    assert frechet(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet(x, x + 1) == pytest.approx(40)


def slow_kid(x, y):
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    x, y = x.tolist(), y.tolist()
    n, m = len(x), len(y)
    within = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_is_its_double_sum():
    x, y = rows(7, 4), rows(9, 4, 1) + 0.5
    assert kid(x, y) == pytest.approx(slow_kid(x, y), rel=1e-10)


def test_kid_is_unbiased():
    """Halves of one set are on average no distance apart, and some less than none."""
    found = [kid(rows(20, 4, 2 * i), rows(20, 4, 2 * i + 1)) for i in range(200)]
    assert min(found) < 0
    mean, spread = sum(found) / 200, torch.tensor(found).std().item() / math.sqrt(200)
    assert abs(mean) < 3 * spread
    assert kid(rows(20, 4), rows(20, 4, 1) + 1) > 10 * abs(mean)


def test_sums_over_parts_are_sums():
    """More than one part of 2,048 rows."""
    x, y = rows(2100, 2), rows(30, 2, 1)
    product = x @ y.T
    expected = (x @ x.T / 2 + 1).pow(3)
    within = (expected.sum() - expected.diagonal().sum()) / (2100 * 2099)
    other = (y @ y.T / 2 + 1).pow(3)
    within += (other.sum() - other.diagonal().sum()) / (30 * 29)
    assert kid(x, y) == pytest.approx(float(within - 2 * (product / 2 + 1).pow(3).mean()), rel=1e-8)


def test_cmmd_of_a_set_with_itself_is_zero_and_less_without_bias():
    x = rows(30, 8)
    assert cmmd(x, x) == 0
    assert cmmd(x, x, biased=False) < 0
    y = rows(30, 8, 1) + 1
    assert cmmd(x, y, biased=False) < cmmd(x, y)


def test_cmmd_looks_at_directions_only():
    x, y = rows(30, 8), rows(30, 8, 1)
    assert cmmd(x, y) > 0
    assert cmmd(5 * x, 0.1 * y) == pytest.approx(cmmd(x, y), rel=1e-9)


def test_cmmd_is_nearly_ten_times_the_squared_distance_of_means():
    x, y = rows(40, 16) + 1, rows(40, 16, 1)
    means = [z.div(z.norm(dim=1, keepdim=True)).mean(0) for z in (x, y)]
    assert cmmd(x, y) == pytest.approx(10 * float((means[0] - means[1]).square().sum()), rel=0.03)


def test_cmmd_of_opposite_points_is_known():
    """All of x at e, all of y at −e: 2 (1 − exp(−4/200))."""
    x = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    assert cmmd(x, -2 * x) == pytest.approx(2000 * (1 - math.exp(-0.02)))
    assert cmmd(x, -2 * x, biased=False) == pytest.approx(2000 * (1 - math.exp(-0.02)))


def test_the_bias_of_cmmd_is_twenty_by_n():
    """Isotropic and 200 of each: about 0.1, and none without bias."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 256, generator=generator)
    assert cmmd(x, y) == pytest.approx(0.1, abs=0.01)
    assert cmmd(x, y, biased=False) == pytest.approx(0, abs=0.01)


def test_clip_score_is_a_hundred_cosines_and_never_negative():
    images = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    texts = torch.tensor([[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    expected = torch.tensor([100, 100 / math.sqrt(2), 0], dtype=torch.float64)
    assert torch.allclose(clip_score(images, texts), expected)


def test_ssim_of_equal_pictures_is_one_for_each():
    x = pictures(3)
    assert torch.allclose(ssim(x, x), torch.ones(3, dtype=torch.float64))
    y = x.clone()
    y[1] = pictures(1, seed=1)[0]
    found = ssim(x, y)
    assert found[0] == pytest.approx(1)
    assert found[2] == pytest.approx(1)
    assert found[1] < 0.2


def test_ssim_of_even_pictures_compares_their_brightness_alone():
    """(2ab + c1) / (a² + b² + c1)."""
    a, b = 0.2, 0.6
    found = ssim(torch.full((1, 1, 16, 16), a), torch.full((1, 1, 16, 16), b))
    assert found.item() == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4))


def test_ssim_is_its_sum_over_one_window():
    """A picture of 11 x 11 pixels has one window."""
    x, y = pictures(1, 11, 1).double(), pictures(1, 11, 1, seed=1).double()
    at = torch.arange(-5, 6, dtype=torch.float64)
    w = (-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2)).exp()
    w = w / w.sum()
    mx, my = (w * x).sum(), (w * y).sum()
    sx, sy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
    sxy = (w * (x - mx) * (y - my)).sum()
    expected = (2 * mx * my + 1e-4) * (2 * sxy + 9e-4)
    expected /= (mx**2 + my**2 + 1e-4) * (sx + sy + 9e-4)
    assert ssim(x, y).item() == pytest.approx(expected.item(), rel=1e-9)


def test_ssim_is_symmetric_and_falls_with_noise():
    x = pictures(1, 32)
    noisy = [(x + s * (pictures(1, 32, seed=2) - 0.5)).clamp(0, 1) for s in (0.1, 0.5, 1.0)]
    found = [ssim(x, y).item() for y in noisy]
    assert 1 > found[0] > found[1] > found[2]
    assert ssim(x, noisy[1]).item() == pytest.approx(ssim(noisy[1], x).item())


class Flat(nn.Module):
    """Pixels as features, for torchmetrics."""

    num_features = 12

    def forward(self, x):
        return x.flatten(1)


def test_frechet_agrees_with_torchmetrics():
    package = pytest.importorskip("torchmetrics.image.fid")
    x, y = pictures(40, 2).double(), pictures(50, 2, seed=1).double() ** 2
    theirs = package.FrechetInceptionDistance(Flat(), input_img_size=(3, 2, 2))
    theirs.set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    assert frechet(x.flatten(1), y.flatten(1)) == pytest.approx(theirs.compute().item(), abs=1e-8)


def test_kid_agrees_with_torchmetrics():
    package = pytest.importorskip("torchmetrics.image.kid")
    x, y = pictures(40, 2), pictures(40, 2, seed=1) ** 2
    with pytest.warns(UserWarning, match="memory footprint"):
        theirs = package.KernelInceptionDistance(Flat(), subsets=1, subset_size=40)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    found = theirs.compute()[0].item()
    assert kid(x.flatten(1), y.flatten(1)) == pytest.approx(found, abs=1e-6)


def test_ssim_agrees_with_torchmetrics_within_its_reflected_border():
    package = pytest.importorskip("torchmetrics.functional.image")
    x, y = pictures(2, 24).double(), pictures(2, 24, seed=1).double()
    _, theirs = package.structural_similarity_index_measure(
        x, y, data_range=1.0, return_full_image=True
    )
    assert torch.allclose(ssim(x, y), theirs[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-8)


@pytest.mark.parametrize("measure", [frechet, kid, cmmd])
def test_sets_that_cannot_be_compared_are_refused(measure):
    x = rows(4, 3)
    with pytest.raises(ErasureError, match="n of 2 or more"):
        measure(x, x[:1])
    with pytest.raises(ErasureError, match="n x channels"):
        measure(x[0], x)
    with pytest.raises(ErasureError, match="not finite"):
        measure(x, x * math.nan)
    with pytest.raises(ErasureError, match="of 3 and of 2 channels"):
        measure(x, x[:, :2])


def test_features_without_direction_are_refused():
    x = rows(4, 3)
    with pytest.raises(ErasureError, match="no direction"):
        cmmd(x, 0 * x)
    with pytest.raises(ErasureError, match="4 pictures were to be scored with 2 texts"):
        clip_score(x, x[:2])


def test_pictures_that_are_no_pairs_are_refused():
    x = pictures()
    with pytest.raises(ErasureError, match="in pairs"):
        ssim(x, x[:1])
    with pytest.raises(ErasureError, match="in pairs"):
        ssim(x[0], x[0])
    for wrong in (x * 255, x - 1, x * math.nan):
        with pytest.raises(ErasureError, match="from 0 to 1"):
            ssim(x, wrong)
    with pytest.raises(ErasureError, match="windows of 11"):
        ssim(pictures(size=10), pictures(size=10))


def test_lpips_names_its_extra_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    features._perceptual.cache_clear()
    with pytest.raises(ErasureError, match=r"diffusers-erase\[perceptual\]"):
        lpips(pictures(), pictures())


def test_lpips_hands_the_package_pictures_of_minus_one_to_one(monkeypatch):
    """And keeps its network."""
    made = []

    class Distance(nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            made.append(net)

        def forward(self, x, y):
            return (x - y).abs().amax((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Distance))
    features._perceptual.cache_clear()
    black, white = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    assert lpips(black, white).tolist() == [2, 2]
    assert lpips(black, black).tolist() == [0, 0]
    assert made == ["alex"]
    with pytest.raises(ErasureError, match="three colours"):
        lpips(black[:, :1], black[:, :1])
    features._perceptual.cache_clear()


def test_a_broken_package_is_told_apart_from_nothing(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(features, "import_module", broken)
    with pytest.raises(ErasureError, match="nms does not exist"):
        optional("lpips", "perceptual")


def test_nothing_to_embed_is_refused():
    model = SimpleNamespace()
    with pytest.raises(ErasureError, match="No pictures"):
        picture_features(model, None, [])
    with pytest.raises(ErasureError, match="No texts"):
        text_features(model, None, [])


class Bare:
    """An encoder of the years before output objects."""

    device, dtype = torch.device("cpu"), torch.float32

    def get_image_features(self, pixel_values):
        return pixel_values.mean((2, 3))


class Pixels(dict):
    def to(self, device, dtype):
        return self


def test_features_come_bare_or_in_an_output_and_in_any_batches():
    def processor(images, return_tensors, shift=0.0):
        values = [torch.tensor(image.getpixel((0, 0))).float() + shift for image in images]
        return Pixels(pixel_values=torch.stack(values)[:, :, None, None])

    class Wrapped(Bare):
        def get_image_features(self, pixel_values):
            return SimpleNamespace(pooler_output=super().get_image_features(pixel_values))

    shown = [Image.new("L", (4, 4), grey) for grey in (10, 20, 30)]
    expected = torch.tensor([[10.0] * 3, [20.0] * 3, [30.0] * 3], dtype=torch.float64)
    for model in (Bare(), Wrapped()):
        for batch in (1, 2, 3):
            assert torch.equal(picture_features(model, processor, shown, batch=batch), expected)
    assert torch.equal(picture_features(Bare(), processor, shown, shift=1.0), expected + 1)
