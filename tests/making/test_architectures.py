"""Models beyond Stable Diffusion 1: of the real classes, erased where they read the text."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from diffusers_erase import EraserAdapter, ErasureError, Vocabulary, cli, erase
from diffusers_erase.concepts import Concept
from diffusers_erase.editing.recipes import CLOSED_FORM
from diffusers_erase.editing.texts import texts_of
from diffusers_erase.editing.token_pairs import paired_states
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.evaluation.probe import probe
from diffusers_erase.making.choosing import choose_recipe
from diffusers_erase.models.architectures import (
    architecture,
    architecture_or_default,
    reads_text,
    text_weights,
)
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode
from diffusers_erase.models.weight_files import read_weights
from tests import zoo


WORDS = Vocabulary(("van", "truck", "oak", "castle"))
SMALL = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np"}
PIXART = {"use_resolution_binning": False, "clean_caption": False}


@pytest.fixture(scope="module", params=["sdxl", "sd3", "flux", "pixart"])
def model(request, untrained_parts):
    return getattr(zoo, request.param)(untrained_parts["tokenizer"])


@pytest.fixture(scope="module")
def eraser(model):
    brief = replace(CLOSED_FORM, general=False)
    return erase(model, "car", target="truck", vocabulary=WORDS, recipe=brief, check=False)


@pytest.fixture
def pipe(model):
    yield model
    model.unload_erasures()


def draw(pipe, prompt="a photo of a red car", guidance=1.0, **options):
    options |= PIXART if type(pipe).__name__.startswith("PixArt") else {}
    return pipe(
        prompt,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        **SMALL,
        **options,
    ).images


def encoded(pipe, prompt):
    """All that the pipeline makes of a prompt, as it takes it back."""
    options = {"prompt": prompt, "device": "cpu", "num_images_per_prompt": 1}
    kind = type(pipe).__name__
    if kind.startswith("StableDiffusion3"):
        found = pipe.encode_prompt(
            **options, prompt_2=None, prompt_3=None, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": found[0], "pooled_prompt_embeds": found[2]}
    if kind.startswith("Flux"):
        found = pipe.encode_prompt(**options, prompt_2=None)
        return {"prompt_embeds": found[0], "pooled_prompt_embeds": found[1]}
    found = pipe.encode_prompt(**options, do_classifier_free_guidance=False)
    if kind.startswith("PixArt"):
        return {
            "prompt_embeds": found[0],
            "prompt_attention_mask": found[1],
            "negative_prompt": None,
        }
    return {"prompt_embeds": found[0], "pooled_prompt_embeds": found[2]}


def test_eraser_of_every_architecture_changes_what_text_layers_read_and_nothing_else(pipe, eraser):
    embeds = encoded(pipe, "a photo of a red car")
    mapped = embeds["prompt_embeds"].double()
    mapped = mapped + (mapped @ eraser.text_map.V) @ eraser.text_map.U.T
    before = draw(pipe)
    reference = draw(pipe, prompt=None, **{**embeds, "prompt_embeds": mapped.float()})
    weights = {path: W.clone() for path, W in text_weights(Model.of(pipe).denoiser).items()}
    pipe.load_erasure(eraser)
    after = draw(pipe)
    assert abs(after - reference).max() < 2e-5
    assert abs(after - before).max() > 5e-4
    pipe.unload_erasures()
    for path, W in text_weights(Model.of(pipe).denoiser).items():
        assert torch.equal(W, weights[path])


def test_erase_maps_the_concept_to_its_target_in_every_segment_of_the_states(pipe, eraser):
    prompts = ["a photo of a red car", "a car on the beach"]
    rows = paired_states(
        texts_of(pipe), prompts, [p.replace("car", "truck") for p in prompts], "last"
    )
    E, V = rows.E, rows.V
    read = E + (E @ eraser.text_map.V) @ eraser.text_map.U.T
    apart = (read - V).square().sum(1) / (E - V).square().sum(1)
    assert len(E) == len(prompts) * (2 if hasattr(pipe, "tokenizer_3") else 1)
    assert apart.max() < 0.6
    null = encode(pipe, [""])[0].double()
    moved = (null @ eraser.text_map.V) @ eraser.text_map.U.T
    assert moved.norm() < 1e-5 * null.norm()


def test_eraser_of_every_architecture_is_saved_and_loads_as_a_text_map_alone(
    pipe, eraser, tmp_path
):
    folder = eraser.save_pretrained(tmp_path / "car")
    pipe.load_erasure(folder)
    whole = draw(pipe)
    pipe.unload_erasures()
    pipe.load_erasure(eraser.portable)
    assert abs(draw(pipe) - whole).max() < 1e-5
    pipe.unload_erasures()
    pipe.load_erasure(EraserAdapter((Lora(eraser.factors),), eraser.config))
    assert abs(draw(pipe) - whole).max() < 1e-5
    pipe.unload_erasures()
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(folder)  # in half precision
        assert abs(draw(pipe) - whole).max() < 1e-4
        pipe.unload_lora_weights()


def test_erase_solves_a_recipe_for_models_that_cannot_be_trained(pipe, capsys):
    assert choose_recipe(Model.of(pipe), WORDS, training=False, verbose=True) is CLOSED_FORM
    assert "this one needs only the text encoders" in capsys.readouterr().err
    with pytest.raises(ErasureError, match="trained on Stable Diffusion 1 and 2"):
        erase(pipe, "car", target="truck", vocabulary=WORDS, recipe="esd", check=False)


def test_load_erasure_refuses_erasers_of_other_architectures_and_changes_nothing(
    pipe, eraser, untrained
):
    before = {path: W.clone() for path, W in text_weights(untrained.unet).items()}
    for foreign in (eraser, eraser.portable):
        with pytest.raises(ErasureError, match=r"This eraser|text encoder reads"):
            untrained.load_erasure(foreign)
    for path, W in text_weights(untrained.unet).items():
        assert torch.equal(W, before[path])


def test_probe_reads_the_text_layers_of_every_architecture(pipe, eraser):
    found = probe(pipe, eraser, [p.text for p in Concept("car").example_prompts(4)])
    assert found.moved > 1e-4
    assert 0 < found.residual < found.moved


def test_read_weights_needs_no_denoiser(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    there = text_weights(Model.of(pipe).denoiser)
    found = read_weights(tmp_path / "model")
    assert found.keys() == there.keys()
    assert all(torch.equal(found[path], there[path]) for path in there)
    assert all(map(reads_text, found))


def test_edit_command_takes_a_transformer_model(untrained, tmp_path):
    pipe = zoo.sd3(untrained.tokenizer)
    pipe.save_pretrained(tmp_path / "model")
    arguments = ["edit", "--model", str(tmp_path / "model"), "--concept", "car", "--recipe", "uce"]
    ran = CliRunner().invoke(cli.app, [*arguments, "--output", str(tmp_path / "erased")])
    assert ran.exit_code == 0, ran.output
    before = draw(pipe)
    pipe.load_erasure(tmp_path / "erased")
    assert abs(draw(pipe) - before).max() > 1e-3


def test_erase_ignores_masked_padding(untrained):
    pipe = zoo.pixart(untrained.tokenizer)
    states = encode(pipe, ["a car", "a photo of a red car on the beach"])
    said = [
        len(pipe.tokenizer(p).input_ids) for p in ("a car", "a photo of a red car on the beach")
    ]
    for own, count in zip(states, said, strict=True):
        assert not own[count:].any()
        assert own[:count].abs().sum(1).min() > 0


def test_erase_works_on_stable_diffusion_3_without_t5(untrained):
    pipe = zoo.sd3(untrained.tokenizer)
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    eraser = erase(pipe, "car", target="truck", vocabulary=WORDS, recipe="uce", check=False)
    before = draw(pipe)
    pipe.load_erasure(eraser)
    assert abs(draw(pipe) - before).max() > 1e-3


def test_unknown_denoisers_are_named_in_the_error():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ErasureError, match=r"Cannot erase in 'Linear'.*FluxTransformer2DModel"):
        Model.of(model)
    assert architecture("FluxTransformer2DModel").component == "transformer"
    assert architecture_or_default("").component == "unet"
