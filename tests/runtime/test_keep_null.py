"""`keep_null="exact"`: erasers that are skipped where the text is the empty prompt's."""

import copy
from dataclasses import replace

import pytest
import torch

from diffusers_erase import ErasureError, Vocabulary, erase, load_erasure
from diffusers_erase.editing.own_prompts import own_words
from diffusers_erase.editing.recipes import CLOSED_FORM
from diffusers_erase.models.architectures import projections
from diffusers_erase.models.text_states import encode
from diffusers_erase.runtime.hooking import NULL_WITHIN
from tests import zoo


pytestmark = [
    pytest.mark.filterwarnings("ignore:The eraser"),  # random erasers interfere
    pytest.mark.filterwarnings("ignore:There are modules"),
]


def layer_of(pipe):
    return next(iter(projections(pipe.unet, ("to_v",)).values()))


def to(pipe, dtype):
    """The pipeline in another precision; its text encoder is a copy, for others share it."""
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder).to(dtype)
    pipe.unet.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_null_rows_of_a_batch_are_the_bases_bit_for_bit_and_other_rows_are_erased(
    untrained, make_eraser, dtype
):
    to(untrained, dtype)
    layer = layer_of(untrained)
    rows = encode(untrained, ["", "a photo of a red car", "", "a car"])
    base = layer(rows)
    erasers = [
        make_eraser(untrained.unet, seed=k, scale=0.4, concept=c) for k, c in enumerate(("a", "b"))
    ]
    untrained.load_erasure(erasers, mode="hook")
    plain = layer(rows)
    assert (plain[0] != base[0]).any()  # a random eraser moves the empty prompt
    untrained.unload_erasures()
    untrained.load_erasure(erasers, keep_null="exact")  # `auto` is a hook then
    assert [x.mode for x in untrained.list_erasures().values()] == ["hook", "hook"]
    assert [x.keep_null for x in untrained.list_erasures().values()] == ["exact", "exact"]
    kept = layer(rows)
    assert torch.equal(kept[[0, 2]], base[[0, 2]])
    assert torch.equal(kept[[1, 3]], plain[[1, 3]])
    untrained.set_erasure_strength(["a", "b"], [0.5, 2.0])
    assert torch.equal(layer(rows)[[0, 2]], base[[0, 2]])
    assert (layer(rows)[1] != kept[1]).any()
    with untrained.erasures_disabled():
        assert torch.equal(layer(rows), base)
    assert torch.equal(layer(rows)[[0, 2]], base[[0, 2]])
    untrained.unload_erasure("a")
    assert torch.equal(layer(rows)[[0, 2]], base[[0, 2]])
    untrained.unload_erasures()
    assert torch.equal(layer(rows), base)


def test_only_erasers_that_were_loaded_so_skip_the_empty_prompt(untrained, make_eraser):
    layer, rows = layer_of(untrained), encode(untrained, [""])
    base = layer(rows)
    untrained.load_erasure(make_eraser(untrained.unet, seed=1), "one", keep_null="exact")
    assert torch.equal(layer(rows), base)
    untrained.load_erasure(make_eraser(untrained.unet, seed=2), "two", mode="hook")
    assert (layer(rows) != base).any()
    assert untrained.list_erasures()["two"].keep_null is None
    untrained.unload_erasure("two")
    assert torch.equal(layer(rows), base)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_empty_prompt_is_known_in_another_precision_than_that_of_loading(playground, half):
    """And no word of the playground's is taken for it."""
    eraser = erase(playground, "car", target="bus", recipe="closed-form", check=False)
    playground.load_erasure(eraser, keep_null="exact")
    to(playground, half)
    null = encode(playground, [""])
    layer = layer_of(playground)
    erased = layer(null.repeat(2, 1, 1))
    words = encode(playground, own_words(playground.tokenizer))
    playground.unload_erasures()
    assert torch.equal(erased, layer(null.repeat(2, 1, 1)))
    apart = (words.float() - null.float()).square().sum((1, 2)).sqrt() / null.float().norm()
    assert apart.min() > 2 * NULL_WITHIN


def test_the_picture_of_the_empty_prompt_is_the_bases_and_that_of_the_concept_is_not(
    untrained, make_eraser, picture
):
    base, car = picture(untrained, ""), picture(untrained)
    untrained.load_erasure(make_eraser(untrained.unet, scale=0.4), keep_null="exact")
    assert abs(picture(untrained, "") - base).max() == 0
    assert abs(picture(untrained) - car).max() > 1e-3
    twin = copy.deepcopy(untrained.unet)
    untrained.unload_erasures()
    assert abs(picture(untrained) - car).max() == 0
    untrained.unet = twin  # it has its own
    assert abs(picture(untrained, "") - base).max() == 0
    assert abs(picture(untrained) - car).max() > 1e-3


def test_keep_null_acts_in_a_compiled_denoiser(untrained, make_eraser, picture):
    untrained.unet = zoo.shallow_unet(128)
    base = picture(untrained, "")
    eraser = make_eraser(untrained.unet, scale=0.4)
    untrained.unet.compile(backend="eager")
    untrained.load_erasure(eraser, keep_null="exact")
    assert abs(picture(untrained, "") - base).max() == 0
    erased = picture(untrained)
    untrained.unload_erasures()
    assert abs(picture(untrained) - erased).max() > 1e-3


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "pixart"])
def test_keep_null_in_every_architecture(untrained_parts, family):
    pipe = getattr(zoo, family)(untrained_parts["tokenizer"])
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np"}
    if family == "pixart":
        options |= {"use_resolution_binning": False, "clean_caption": False}

    def drawn(prompt):
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt, guidance_scale=5.0, generator=generator, **options).images

    moving = replace(CLOSED_FORM, general=False, protect_null=False)
    words = Vocabulary(("truck", "oak"))
    eraser = erase(pipe, "car", target="truck", vocabulary=words, recipe=moving, check=False)
    base, car = drawn(""), drawn("a photo of a red car")
    pipe.load_erasure(eraser, strength=4.0, mode="hook")
    assert abs(drawn("") - base).max() > 0
    pipe.unload_erasures()
    pipe.load_erasure(eraser, strength=4.0, keep_null="exact")
    assert abs(drawn("") - base).max() == 0
    assert abs(drawn("a photo of a red car") - car).max() > 1e-4


@pytest.mark.parametrize(
    ("mode", "parts", "message"),
    [
        ("bake", ("to_k", "to_v"), r"rounding moves the empty prompt; load it with `mode=.hook.`"),
        ("adapter", ("to_k",), r"rounding moves the empty prompt; load it with `mode=.hook.`"),
        ("hook", ("to_v", "to_q"), r"layers that do not read the text \('.*to_q' and \d+ others"),
    ],
)
def test_keep_null_refuses_what_cannot_be_exact(untrained, make_eraser, mode, parts, message):
    with pytest.raises(ErasureError, match=message):
        untrained.load_erasure(
            make_eraser(untrained.unet, parts=parts), mode=mode, keep_null="exact"
        )
    assert untrained.list_erasures() == {}


def test_keep_null_refuses_a_denoiser_without_texts(untrained, make_eraser):
    eraser = make_eraser(untrained.unet)
    with pytest.raises(ErasureError, match=r"states of the empty prompt.*a denoiser"):
        load_erasure(untrained.unet, eraser, keep_null="exact")
    assert untrained.list_erasures() == {}
