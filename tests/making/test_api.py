"""`erase` refuses bad requests before anything is computed, and takes incomplete pipelines."""

from types import SimpleNamespace

import pytest
from diffusers import (
    DPMSolverMultistepScheduler,
    LEditsPPPipelineStableDiffusion,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

from diffusers_erase import Concept, ErasureError, erase
from diffusers_erase.making import by_algebra, by_training
from diffusers_erase.making.api import erase as erase_in_api
from diffusers_erase.making.request import as_concepts, understood
from diffusers_erase.models.architectures import text_weights
from diffusers_erase.models.model import Model
from tests import zoo


WORDS = ("truck", "oak")


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test where text is encoded, solved for or trained on."""

    def work(*_, **__):
        raise AssertionError("something was computed")

    monkeypatch.setattr(Model, "states", work)
    monkeypatch.setattr(by_algebra, "edit", work)
    monkeypatch.setattr(by_training, "attached", work)


def test_erase_is_the_public_one():
    assert erase is erase_in_api


@pytest.mark.parametrize("recipe", ["closed-form", "uce"])
@pytest.mark.parametrize(
    "unused",
    [
        {"steps": 3},
        {"accelerator": SimpleNamespace(mixed_precision="no")},
        {"callback_on_step_end": print},
        {"steps": 3, "callback_on_step_end": print},
    ],
    ids=" and ".join,
)
def test_erase_refuses_arguments_that_a_solved_recipe_does_not_use(
    untrained, no_work, recipe, unused
):
    names = " and ".join(f"`{name}`" for name in unused)
    with pytest.raises(ErasureError, match=f"'{recipe}' is solved .* does not use {names};"):
        erase(untrained, "car", vocabulary=WORDS, recipe=recipe, **unused, check=False)


@pytest.mark.parametrize("precision", ["fp8", "int4"])
def test_erase_refuses_a_precision_that_it_would_ignore(untrained, no_work, precision):
    accelerator = SimpleNamespace(mixed_precision=precision)
    with pytest.raises(ErasureError, match=f"No mixed precision '{precision}'.*Known: no, bf16"):
        erase(untrained, "car", recipe="esd", accelerator=accelerator, check=False)


def instruct_pix2pix(pipe):
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    return StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)


def ledits(pipe):
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=2
    )
    return LEditsPPPipelineStableDiffusion(
        **{**parts, "scheduler": scheduler}, requires_safety_checker=False
    )


@pytest.mark.parametrize("build", [instruct_pix2pix, ledits])
@pytest.mark.parametrize("recipe", ["closed-form", "esd"])
def test_erase_names_the_pipeline_and_what_it_lacks(untrained, no_work, build, recipe):
    pipe = build(untrained)
    with pytest.raises(
        ErasureError, match=r"Cannot erase here: .*encode_prompt.*Pass a pipeline"
    ) as refused:
        erase(pipe, "car", recipe=recipe, check=False)
    assert f"'{type(pipe).__name__}'" in str(refused.value)


def test_erase_works_on_the_refiner_of_stable_diffusion_xl(untrained):
    parts = zoo.sdxl(untrained.tokenizer, 40).components | {"text_encoder": None, "tokenizer": None}
    refiner = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    before = {path: weight.clone() for path, weight in text_weights(refiner.unet).items()}
    eraser = erase(
        refiner, "car", target="truck", vocabulary=WORDS, recipe="closed-form", check=False
    )
    assert eraser.text_map.width == 40
    refiner.load_erasure(eraser)
    car, truck = Model.of(refiner).encode(["a photo of a car", "a photo of a truck"])
    for path, weight in text_weights(refiner.unet).items():
        read, meant = car @ weight.T, truck @ before[path].T
        moved = (read - meant).square().sum() / (car @ before[path].T - meant).square().sum()
        assert moved < 0.6


@pytest.mark.parametrize("name", ["car\x1b[31m", "car\n", "car\u202e", "x" * 1001])
def test_erase_refuses_names_that_no_config_can_hold(untrained, no_work, name):
    for concept in (Concept(name), Concept("car", synonyms=(name,))):
        with pytest.raises(ErasureError, match="could not be saved: 'concepts"):
            erase(untrained, concept, vocabulary=WORDS, check=False)


def test_erase_refuses_no_concept_and_recipes_that_are_none(untrained, no_work):
    with pytest.raises(ErasureError, match="There is no concept to erase"):
        erase(untrained, [], check=False)
    with pytest.raises(ErasureError, match="No recipe 'magic'"):
        erase(untrained, "car", recipe="magic", check=False)
    with pytest.raises(ErasureError, match=r"No recipe 7\."):
        erase(untrained, "car", recipe=7, check=False)


@pytest.mark.parametrize(
    "text", ["car, truck", "car; truck", "car and truck", "car / truck", "car\ntruck"]
)
def test_erase_refuses_a_string_that_lists_names(untrained, no_work, text):
    for asked in (text, ["oak", text]):
        with pytest.raises(ErasureError, match=r'pass a list: \["car", "truck"\].*Concept\("car'):
            erase(untrained, asked, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concept": 5}, "a name, a `Concept`, or a sequence of these; got 5"),
        ({"concept": ["car", 5]}, r"a sequence of these; got \['car', 5\]"),
        ({"concept": "car", "target": 5}, r"A target is a word.*got 5\."),
        ({"concept": "car", "target": ("oak", 5)}, r"A target is a word.*got \('oak', 5\)"),
        ({"concept": "car", "vocabulary": [3]}, "`vocabulary` is a sequence of strings; got 3"),
        ({"concept": "car", "vocabulary": 3}, "`vocabulary` is a sequence of strings; got 3"),
        ({"concept": "car", "keep": [None]}, "`keep` is a sequence of strings; got None"),
        ({"concept": "car", "kind": "verb"}, "No kind of concept 'verb'"),
        ({"concept": "car", "target": "blue car"}, "target 'blue car' names 'car' and would still"),
        ({"concept": "car", "target": "Cars"}, "target 'Cars' is the concept itself"),
        (
            {"concept": ["dog", Concept("cat", synonyms=("kitten",))], "target": ("kitten", "oak")},
            "target 'kitten' is a name of 'cat', which is to be erased",
        ),
        ({"concept": "red car", "target": "big red cars"}, "target 'big red cars' names 'red car'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("recipe", ["closed-form", "esd"])
def test_erase_refuses_what_is_no_name_or_no_target(untrained, no_work, arguments, message, recipe):
    with pytest.raises(ErasureError, match=message):
        erase(untrained, recipe=recipe, **arguments, check=False)


def test_erase_understands_what_users_write_and_says_so(untrained, capsys):
    def erased(*asked, **options):
        return erase(untrained, *asked, recipe="uce", **options, check=False).config.concepts

    (style,) = erased("in the style of seuratti")
    assert (style.name, style.kind) == ("seuratti", "style")
    said = capsys.readouterr().err
    assert "'in the style of seuratti' is treated as the style 'seuratti'; pass kind=" in said
    (red,) = erased("red", target="blue")
    assert red.kind == "attribute"
    assert "'red' is treated as an attribute; pass kind= to change." in capsys.readouterr().err
    (red,) = erased("red", kind="object", target="blue", vocabulary=("oak", "cyan"))
    assert red.kind == "object"
    (other,) = erased("tulip", target="blue", vocabulary=("red", "green"))
    assert other.kind == "attribute"
    capsys.readouterr()
    cars = erased(["car", "Cars", Concept("the car", synonyms=("automobile",))], progress=False)
    assert [(c.name, c.synonyms) for c in cars] == [("car", ("automobile",))]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("written", "name", "kind"),
    [("cars", "car", "object"), ("churches", "church", "object"), ("buses", "bus", "object"),
     ("red cars", "red car", "compound"), ("beaches", "beach", "place"),
     ("images of the daisies", "daisy", "object"), ("glasses", "glasses", "object")],
)  # fmt: skip
def test_a_plural_is_erased_in_the_singular(untrained, written, name, kind):
    tokenizer = untrained.tokenizer
    assert as_concepts(written, tokenizer=tokenizer) == (Concept(name, kind),)
    assert as_concepts(Concept(written), tokenizer=tokenizer) == (Concept(written),)


def test_a_plural_that_the_tokenizer_knows_is_a_name_too(untrained):
    (sentence,) = understood("stars", tokenizer=untrained.tokenizer)
    assert "'stars' is treated as the object 'star' or 'stars'; pass kind=" in sentence
    assert as_concepts("stars", tokenizer=untrained.tokenizer)[0].synonyms == ("stars",)


def test_erase_takes_a_listed_word_that_contains_the_name_as_target(untrained):
    words = ("fire truck", "oak")
    (truck,) = erase(
        untrained, "truck", target="fire truck", vocabulary=words, recipe="uce", check=False
    ).config.concepts
    assert truck.target == "fire truck"
    with pytest.raises(ErasureError, match="'fire truck' names 'truck'"):
        erase(
            untrained, "truck", target="fire truck", vocabulary=("oak",), recipe="uce", check=False
        )
    for target in ("car", "blue car"):
        (red,) = erase(
            untrained, "red car", target=target, recipe="uce", check=False
        ).config.concepts
        assert (red.kind, red.target) == ("compound", target)
