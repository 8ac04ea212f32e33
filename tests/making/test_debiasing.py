from dataclasses import replace

import pytest
import torch

from diffusers_erase import Concept, ErasureError, debias
from diffusers_erase.editing.blending import Blend
from diffusers_erase.editing.texts import texts_of
from diffusers_erase.making.debiasing import DEBIAS
from diffusers_erase.models.text_states import encode


FREE = replace(DEBIAS, keep_weight=1e-6, ridge=1e-9, rank=200, general=False)
"""Without kept words the concept is read to the letter."""


def linear(base, slope, seen):
    """A world whose shares follow the amounts of the attributes."""

    def observe(eraser):
        amounts = [0.0] * len(base)
        if eraser is not None:
            amounts = list(eraser.config.concepts[0].scores.values())
        shares = [b + slope * a for b, a in zip(base, amounts, strict=True)]
        seen.append(shares)
        return [min(max(share, 0), 1) for share in shares]

    return observe


def test_debias_moves_states_by_the_amounts_towards_the_attributes(untrained):
    texts = texts_of(untrained)
    blend = Blend.of(texts, Concept("car"), ["red", "{} at night"], prompts=2)
    plain, red, night = (
        encode(untrained, [p]).double()[0]
        for p in ("a photo of a car", "a photo of a red car", "a photo of a car at night")
    )
    first = len(untrained.tokenizer("a photo of a car").input_ids) - 2  # the concept's own token
    assert torch.allclose(blend.E[first], plain[first])
    assert torch.allclose(blend.toward[0, first], red[first + 1] - plain[first], atol=1e-6)
    assert torch.allclose(blend.toward[1, first], night[first] - plain[first], atol=1e-6)
    expected = plain[first] + 0.5 * (red[first + 1] - plain[first])
    assert torch.allclose(blend.at([0.5, 0.0])[first], expected, atol=1e-6)


def test_debias_ends_when_the_shares_reach_the_goal(untrained):
    seen = []
    observe = linear([0.8, 0.1], 0.3, seen)
    eraser = debias(untrained, "car", ["red", "blue"], observe, goal=[0.5, 0.4], recipe=FREE)
    assert len(seen) > 2
    assert seen[-1] == pytest.approx([0.5, 0.4], abs=0.05)
    assert eraser.config.results["share of red"] == pytest.approx(seen[-1][0])
    amounts = list(eraser.config.concepts[0].scores.values())
    assert amounts == pytest.approx([-1, 1], abs=0.2)
    blend = Blend.of(texts_of(untrained), Concept("car"), ["red", "blue"], FREE.prompts)
    T = eraser.text_map
    read = blend.E + (blend.E @ T.V) @ T.U.T
    asked = blend.at(amounts)
    assert (read - asked).norm() < 0.1 * (asked - blend.E).norm()
    null = encode(untrained, [""])[0].double()
    assert ((null @ T.V) @ T.U.T).norm() < 1e-6 * null.norm()


def test_debias_returns_the_best_round(untrained):
    shares = iter([[0.9, 0.1], [0.6, 0.4], [0.0, 1.0]])
    eraser = debias(
        untrained, "car", ["red", "blue"], lambda _: next(shares), rounds=2, tolerance=0.01
    )
    assert eraser.config.results["share of red"] == 0.6


def test_eraser_of_debias_is_loaded_and_unloaded_as_any_other(untrained, picture, tmp_path):
    eraser = debias(untrained, "car", ["red", "blue"], linear([0.9, 0.1], 0.3, []), rounds=2)
    before = picture(untrained, "a photo of a car")
    untrained.load_erasure(eraser.save_pretrained(tmp_path / "balanced"))
    assert abs(picture(untrained, "a photo of a car") - before).max() > 1e-4
    untrained.unload_erasures()
    assert abs(picture(untrained, "a photo of a car") - before).max() == 0
    for parameter in untrained.text_encoder.parameters():
        parameter.data = -parameter.data
    with pytest.raises(ErasureError, match="text encoder reads 'car' otherwise"):
        untrained.load_erasure(eraser.portable)
    for parameter in untrained.text_encoder.parameters():  # the fixture's own, for all tests
        parameter.data = -parameter.data


@pytest.mark.parametrize(
    ("attributes", "options", "message"),
    [
        (["red"], {}, "between two attributes or more"),
        (["red", "{} "], {}, "between two attributes or more"),
        ("red", {}, "sequence of strings"),
        (["red", "blue"], {"goal": [0.9, 0.9]}, "at most 1 together"),
        (["red", "blue"], {"rounds": 0}, "`rounds` must be positive"),
        (["red", "blue"], {"goal": [1.0]}, "one share for each of the 2"),
        (["red", "blue"], {"observe": lambda _: [0.5]}, "a share .0 to 1. for each"),
        (["red", "blue"], {"observe": lambda _: [0.5, float("nan")]}, "a share .0 to 1. for each"),
        (["red", "blue"], {"observe": lambda _: [0.5, 0.5]}, "nothing to do"),
    ],
)
def test_debias_refuses_bad_arguments(untrained, attributes, options, message):
    options = {"observe": linear([0.9, 0.1], 0.3, []), **options}
    with pytest.raises(ErasureError, match=message):
        debias(untrained, "car", attributes, **options)
