import pytest
import torch

from diffusers_erase import EraserAdapter, ErasureError, erase
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.evaluation import probe as probing
from diffusers_erase.evaluation.probe import probe
from diffusers_erase.models.architectures import TEXT_PARTS, projections
from diffusers_erase.models.text_states import encode
from diffusers_erase.storage.tensor_cache import TensorCache


PROMPTS = ["a photo of a car", "a red car"]


def test_probe_of_a_zero_eraser_finds_no_change(untrained, make_eraser):
    idle = make_eraser(untrained.unet, scale=0.0)
    found = probe(untrained, idle, PROMPTS, bound=1e-9)
    assert found.moved == found.regained == 0
    assert found.residual < 1e-6
    assert found.size == pytest.approx(1, abs=1e-3)


def test_probe_regains_an_edit_the_better_the_smaller_the_bound(untrained):
    eraser = erase(
        untrained, "car", target="oak", vocabulary=["van", "oak"], recipe="closed-form", check=False
    )
    near, far = (probe(untrained, eraser, PROMPTS, bound=bound) for bound in (1.0, 1e-7))
    assert near.moved == pytest.approx(far.moved)
    assert far.regained > near.regained
    assert far.regained > 0.99
    assert far.size > 1


def test_probe_moved_is_the_change_of_the_layers_outputs(untrained, make_eraser):
    eraser = make_eraser(untrained.unet, scale=0.3)
    found = probe(untrained, eraser, PROMPTS)
    c = encode(untrained, PROMPTS).flatten(0, 1).double()
    moved = total = 0.0
    for path, layer in projections(untrained.unet, TEXT_PARTS).items():
        W = layer.weight.detach().double()
        moved += float((c @ eraser.delta(path).double().T).square().sum())
        total += float((c @ W.T).square().sum())
    assert found.moved == pytest.approx(moved / total, rel=1e-5)
    assert 0 < found.residual < found.moved


def test_probe_of_the_lora_equals_that_of_the_text_map(untrained):
    eraser = erase(untrained, "car", vocabulary=["van", "oak"], recipe="uce", check=False)
    by_lora = probe(untrained, EraserAdapter((Lora(eraser.factors),), eraser.config), PROMPTS)
    by_map = probe(untrained, eraser.portable, PROMPTS)
    assert by_map.residual == pytest.approx(by_lora.residual, rel=1e-3)
    assert by_map.moved == pytest.approx(by_lora.moved, rel=1e-4)


def test_probe_refuses_no_prompts(untrained, make_eraser):
    with pytest.raises(ErasureError, match="No prompts to probe"):
        probe(untrained, make_eraser(untrained.unet), [])


def test_probe_regains_nothing_where_keys_and_values_are_unchanged(untrained, make_eraser):
    found = probe(untrained, make_eraser(untrained.unet, parts=("to_q",)), ["a car"])
    assert found.regained == 0


def test_probe_takes_the_gram_matrix_of_the_same_weights_from_the_cache(
    untrained, make_eraser, tmp_path, monkeypatch
):
    summed = []

    def counted(rows, onto=None):
        summed.append(len(rows))
        return original(rows, onto)

    original = probing.lower_gram
    monkeypatch.setattr(probing, "lower_gram", counted)
    cache = TensorCache(tmp_path)
    small, large = (make_eraser(untrained.unet, scale=scale) for scale in (0.1, 0.3))
    plain = probe(untrained, large, PROMPTS)
    probe(untrained, small, PROMPTS, cache=cache)
    once = len(summed)
    assert probe(untrained, large, PROMPTS, cache=cache) == plain
    assert len(summed) == once
    layer = next(iter(projections(untrained.unet, TEXT_PARTS).values()))
    with torch.no_grad():
        layer.weight[0, 0] += 0.5
    try:
        assert probe(untrained, large, PROMPTS, cache=cache) != plain
    finally:
        with torch.no_grad():
            layer.weight[0, 0] -= 0.5
    assert len(summed) > once
