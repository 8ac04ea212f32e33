"""Many erasers: what a call costs is counted in products with weights and in written layers."""

import pytest
import torch

from diffusers_erase import ErasedConcept, EraserAdapter, EraserConfig
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.models.architectures import text_layers, text_weights
from diffusers_erase.runtime.plugin import (
    load_erasure,
    set_erasure_strength,
    unload_erasure,
    unload_erasures,
    verify_erasures,
)


def solved(seed, width, rank=8):
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.randn(width, rank, generator=generator).double() * 0.02 for _ in "UV")
    return EraserAdapter((TextMap(U, V),), EraserConfig((ErasedConcept(f"thing {seed}"),)))


@pytest.fixture
def unet(untrained):
    return untrained.unet


@pytest.fixture
def several(unet):
    """More than fit side by side: their ranks sum to more than the width."""
    width = next(iter(text_layers(unet).values())).in_features
    return [solved(seed, width) for seed in range(width // 8 + 2)]


@pytest.fixture
def products(monkeypatch):
    """The layers whose weight a text map was multiplied with."""
    seen, original = [], TextMap.pair

    def pair(self, path, product):
        seen.append(path)
        return original(self, path, product)

    monkeypatch.setattr(TextMap, "pair", pair)
    return seen


@pytest.mark.parametrize("mode", ["bake", "hook"])
def test_a_change_of_many_erasers_is_one_product_with_each_weight(unet, several, products, mode):
    layers = len(text_layers(unet))
    *first, last = several
    names = load_erasure(unet, first, mode=mode)
    assert len(products) == layers
    calls = (
        lambda: load_erasure(unet, last, mode=mode),
        lambda: set_erasure_strength(unet, names, [0.5] * len(names)),
        lambda: unload_erasure(unet, names[0]),
    )
    for call in calls:
        products.clear()
        call()
        assert len(products) == layers
    products.clear()
    unload_erasures(unet)
    assert not products


def test_strengths_of_many_erasers_are_written_in_one_pass(unet, several):
    names = load_erasure(unet, several)
    before = {path: W._version for path, W in text_weights(unet).items()}
    set_erasure_strength(unet, names, [0.5] * len(names))
    for path, W in text_weights(unet).items():
        assert W._version == before[path] + 1


@pytest.mark.parametrize("mode", ["bake", "hook"])
@pytest.mark.parametrize("count", [3, None])
def test_many_erasers_are_the_sum_of_each_whether_it_is_wider_than_the_text_or_not(
    unet, several, mode, count
):
    several = several[:count]
    strengths = [0.5 + 0.1 * k for k in range(len(several))]
    x = torch.randn(3, several[0].text_map.width)
    layers = text_layers(unet)
    base = {path: layer.weight.detach().clone() for path, layer in layers.items()}
    with torch.no_grad():
        expected = {
            path: layer(x) + sum(s * x @ e.delta(path, base[path]).T for e, s in pairs)
            for pairs in [list(zip(several, strengths, strict=True))]
            for path, layer in layers.items()
        }
        load_erasure(unet, several, strength=strengths, mode=mode)
        for path, layer in layers.items():
            assert torch.allclose(layer(x), expected[path], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(x @ base[path].T, expected[path], atol=1e-3)
    assert verify_erasures(unet) == pytest.approx(dict.fromkeys(verify_erasures(unet), 1), abs=1e-3)
    unload_erasures(unet)
    assert all(torch.equal(layer.weight, base[path]) for path, layer in layers.items())


@pytest.mark.filterwarnings("ignore:The eraser")
def test_one_more_eraser_is_measured_against_the_others_and_not_they_among_themselves(
    untrained, several, monkeypatch
):
    from diffusers_erase.eraser import stacking

    rows, original = [], stacking._squares

    def squares(eraser, E, gram):
        rows.append(len(E))
        return original(eraser, E, gram)

    monkeypatch.setattr(stacking, "_squares", squares)
    *first, last = several[:6]
    untrained.load_erasure(first)
    of_one = rows[0] // len(first)
    rows.clear()
    untrained.load_erasure(last)
    assert sum(rows) == (2 * len(first) + len(first) + 1) * of_one
