import copy

import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_erase import Concept, EraserAdapter, ErasureError, Nearest, Vocabulary, erase
from diffusers_erase.editing.recipes import EDITS
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.evaluation.probe import probe
from diffusers_erase.making.by_algebra import solve_eraser
from diffusers_erase.making.request import Request
from diffusers_erase.models.architectures import TEXT_PARTS, projections
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.weight_files import read_weights
from diffusers_erase.training.targets import Fixed
from tests import zoo


WORDS = ("van", "truck", "oak", "castle")


def request(**changes):
    options = {
        "concepts": (Concept("car"),),
        "recipe": EDITS["closed-form"],
        "vocabulary": Vocabulary(WORDS),
        "target": None,
        "keep": (),
        "protect": (),
        "seed": 0,
    }
    return Request(**options | changes)


@pytest.fixture
def xl(untrained):
    return zoo.sdxl(untrained.tokenizer)


def test_solved_recipes_never_run_the_unet(untrained, monkeypatch):
    def run(*_, **__):
        raise AssertionError("the UNet was run")

    monkeypatch.setattr(untrained.unet, "forward", run)
    for name in EDITS:
        eraser = erase(untrained, "car", vocabulary=WORDS, recipe=name, check=False)
        assert eraser.config.recipe == name
        assert all(torch.isfinite(B).all() for _, B in eraser.factors.values())


def test_card_of_a_solved_eraser_has_the_share_that_other_text_states_regain(untrained, tmp_path):
    eraser = erase(untrained, "car", vocabulary=WORDS, recipe="closed-form", check=False)
    prompts = [p.text for p in Concept("car").example_prompts(8)]
    found = probe(untrained, eraser, prompts)
    assert eraser.config.results["regained by other text states"] == round(found.regained, 3)
    folder = eraser.save_pretrained(tmp_path / "car")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| regained by other text states | {round(found.regained, 3)} |" in card


def test_lora_and_text_map_of_a_solved_eraser_draw_the_same(untrained, picture, tmp_path):
    eraser = erase(untrained, "car", vocabulary=WORDS, recipe="closed-form", check=False)
    folder = eraser.save_pretrained(tmp_path / "car")
    untrained.load_erasure(folder)
    by_map = picture(untrained)
    untrained.unload_erasures()
    untrained.load_erasure(EraserAdapter((Lora(eraser.factors),), eraser.config))
    by_lora = picture(untrained)
    untrained.unload_erasures()
    untrained.load_lora_weights(folder)
    plain = picture(untrained)
    assert abs(by_map - by_lora).max() < 1e-5
    assert 0 < abs(by_map - plain).max() < 1e-3  # its LoRA is saved in half precision


def test_portable_eraser_loads_on_another_model_with_the_same_text_encoder(untrained, tmp_path):
    eraser = erase(untrained, "car", vocabulary=WORDS, recipe="closed-form", check=False).portable
    folder = eraser.save_pretrained(tmp_path / "car")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 60_000
    torch.manual_seed(7)
    for layer in projections(untrained.unet).values():
        layer.weight.data += 0.05 * torch.randn_like(layer.weight)
    layers = projections(untrained.unet, TEXT_PARTS)
    before = {path: layer.weight.clone() for path, layer in layers.items()}
    untrained.load_erasure(folder)
    states = encode(untrained, ["a photo of a red car"])
    T = eraser.text_map
    for path, layer in layers.items():
        assert torch.allclose(states @ layer.weight.T, T(states) @ before[path].T, atol=1e-4)
    untrained.unload_erasures()
    assert all(torch.equal(layer.weight, before[path]) for path, layer in layers.items())


@pytest.mark.filterwarnings("ignore:The eraser")
def test_load_erasure_adds_text_maps_and_loras_up(untrained, make_eraser):
    unet = untrained.unet
    pristine = copy.deepcopy(unet)
    solved_for = erase(untrained, "car", vocabulary=WORDS, recipe="closed-form", check=False)
    trained = make_eraser(unet, parts=("to_q", "to_v"))
    untrained.load_erasure(solved_for, "car")
    untrained.load_erasure(trained, "other", strength=0.5)
    weights = {p: layer.weight for p, layer in projections(pristine).items()}
    for path, layer in projections(unet).items():
        expected = weights[path].clone()
        if path in solved_for.factors:
            A, B = solved_for.factors[path]
            expected += B @ A
        if path in trained.factors:
            expected += 0.5 * trained.delta(path)
        assert torch.allclose(layer.weight, expected, atol=1e-6)


def test_load_erasure_recognises_the_text_encoder_of_a_solved_eraser(untrained, tmp_path):
    folder = erase(untrained, "car", vocabulary=WORDS, recipe="uce", check=False).save_pretrained(
        tmp_path / "e"
    )
    other = copy.deepcopy(untrained.text_encoder)
    torch.manual_seed(3)
    for weight in other.parameters():
        weight.data += 0.5 * torch.randn_like(weight)
    untrained.text_encoder, original = other, untrained.text_encoder
    with pytest.raises(ErasureError, match="reads 'car' otherwise"):
        untrained.load_erasure(folder)
    assert untrained.list_erasures() == {}
    untrained.text_encoder = original
    assert untrained.load_erasure(folder) == "car"


def test_solved_recipes_erase_in_stable_diffusion_xl(xl, tmp_path):
    eraser = erase(xl, "car", target="truck", vocabulary=WORDS, recipe="closed-form", check=False)
    assert eraser.text_map.width == 64
    states = xl.encode_prompt("a photo of a car", do_classifier_free_guidance=False)[0]
    layers = projections(xl.unet, TEXT_PARTS)
    before = {path: states @ layer.weight.T for path, layer in layers.items()}
    xl.load_erasure(eraser.save_pretrained(tmp_path / "car"))
    expected = eraser.text_map(states)
    for path, layer in layers.items():
        assert not torch.allclose(states @ layer.weight.T, before[path])
    xl.unload_erasures()
    for path, layer in layers.items():
        mapped = expected @ layer.weight.T
        A, B = eraser.factors[path]
        assert torch.allclose(states @ (layer.weight + B @ A).T, mapped, atol=1e-5)


@pytest.mark.parametrize("shard", ["10GB", "200KB"])
def test_solve_eraser_needs_only_text_encoders_and_the_weights_that_read_text(xl, tmp_path, shard):
    xl.save_pretrained(tmp_path / "model", max_shard_size=shard)
    whole = erase(xl, "car", target="truck", vocabulary=WORDS, recipe="rece", check=False)
    small = DiffusionPipeline.from_pretrained(tmp_path / "model", unet=None, vae=None)
    weights = read_weights(tmp_path / "model")
    assert set(weights) == set(projections(xl.unet, TEXT_PARTS))
    asked = request(recipe=EDITS["rece"], target=Fixed("truck"))
    eraser = solve_eraser(Model.of(small), asked, weights=weights)
    for path, (A, B) in whole.factors.items():
        again = eraser.factors[path]
        assert torch.allclose(again[1] @ again[0], B @ A, atol=1e-5)


def test_erase_without_a_unet_gives_a_portable_eraser(untrained):
    parts = {name: part for name, part in untrained.components.items() if name != "unet"}
    texts = type(untrained)(**parts, unet=None, requires_safety_checker=False)
    eraser = erase(texts, "car", vocabulary=WORDS, recipe="closed-form", check=False)
    assert eraser.factors == {}
    assert eraser.config.payloads == ("text_map",)
    untrained.load_erasure(eraser)


def test_config_of_a_solved_eraser_records_how_it_was_made(untrained, tmp_path):
    eraser = erase(
        untrained, Concept("car", synonyms=("automobile",)), recipe="closed-form", check=False
    )
    back = EraserAdapter.from_pretrained(eraser.save_pretrained(tmp_path / "car"))
    assert back.config == eraser.config
    parameters = back.config.parameters
    assert 0 < parameters["kept_energy"] <= 1
    assert parameters["solver"] == "Replace()"
    assert back.config.concepts[0].choice == "least-damage"
    assert torch.allclose(back.text_map.change, eraser.text_map.change, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "closed-forn"}, "Did you mean 'closed-form'"),
        ({"recipe": "uce", "steps": 3}, "does not use `steps`"),
        ({"recipe": "uce", "target": "car"}, "is the concept itself"),
        ({"recipe": "uce", "target": Nearest(Vocabulary(("van",)))}, "takes a word as its target"),
        ({"recipe": "uce", "target": ("van", "oak")}, "one for each of 'car'"),
        (
            {"recipe": "uce", "keep": ["a photo of a car"]},
            "is to be kept and names 'car', which is to be erased",
        ),
        ({"protect": ["car"]}, "is to be kept and names 'car'"),
        ({"protect": ["A RED CAR ON THE BEACH"]}, "is to be kept and names 'car'"),
        ({"keep": ["a house next to my cars"]}, "is to be kept and names 'car'"),
        (
            {"keep": ["a car beside a race car"], "vocabulary": ["race car"], "recipe": "uce"},
            "is to be kept and names 'car'",
        ),
        ({"target": "an" + 40 * " old" + " van"}, "is too long: a prompt with it has 128 tokens"),
        ({"target": "a\nvan"}, "with this target could not be saved"),
    ],
)
def test_solved_recipes_refuse_bad_requests(untrained, options, message):
    with pytest.raises(ErasureError, match=message):
        erase(untrained, "car", **options, check=False)


@pytest.mark.parametrize(
    ("concept", "message"),
    [
        ("red car " * 30, "'red car red car .* is too long: a prompt with it has 6. tokens"),
        ([Concept("orange"), Concept("Orange", "object")], "as an attribute and as an object"),
    ],
)
def test_solved_recipes_refuse_bad_concepts(untrained, concept, message):
    with pytest.raises(ErasureError, match=message):
        erase(untrained, concept, recipe="uce", check=False)


def test_a_prompt_of_a_thing_whose_name_has_the_concept_s_may_be_protected(untrained):
    options = {"recipe": "closed-form", "target": "oak", "check": False}
    protect = {"protect": ["a fire truck"], "keep": ["Fire trucks at night"]}
    with pytest.raises(ErasureError, match="list a longer word"):
        erase(untrained, "truck", **options, **protect)
    eraser = erase(untrained, "truck", **options, **protect, vocabulary=["fire truck", "oak"])
    states = Model.of(untrained).encode(["a fire truck", "a truck"]).double()
    kept, erased = (states @ eraser.text_map.change.T).norm(dim=-1).amax(-1)
    assert kept < 1e-4 * erased


def test_solved_recipes_refuse_a_pipeline_with_erasers(untrained, make_eraser):
    untrained.load_erasure(make_eraser(untrained.unet))
    with pytest.raises(ErasureError, match="made from the bare base"):
        erase(untrained, "dog", recipe="uce", check=False)


def test_portable_is_refused_for_a_trained_eraser(untrained, make_eraser):
    with pytest.raises(ErasureError, match="trained for one model"):
        _ = make_eraser(untrained.unet).portable


def test_erase_refuses_a_model_without_text(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ErasureError, match="'UNet2DModel': its text layers are not known"):
        read_weights(tmp_path)


@pytest.mark.parametrize("make", zoo.WITHOUT_ENCODE_PROMPT)
def test_erase_names_the_pipeline_and_what_its_encode_prompt_lacks(untrained, make):
    pipe, _ = make(untrained)
    with pytest.raises(ErasureError, match="`encode_prompt`") as refusal:
        erase(pipe, "car", vocabulary=["oak", "cat"], recipe="uce", check=False)
    assert f"'{type(pipe).__name__}'" in str(refusal.value)


@pytest.mark.parametrize("recipe", ["uce", "surgical-age"])
@pytest.mark.parametrize(
    "options",
    [
        {"encoder_hid_dim": 128, "encoder_hid_dim_type": "text_proj"},
        {"only_cross_attention": (True, False)},
    ],
)
def test_erase_refuses_a_unet_that_reads_the_text_in_another_way(untrained, recipe, options):
    untrained.unet = zoo.unet(128, **options)
    with pytest.raises(ErasureError, match=rf"{[*options][-1]}=|needs more than a prompt"):
        erase(untrained, "car", vocabulary=["oak", "cat"], recipe=recipe, check=False)
