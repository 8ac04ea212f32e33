import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DModel

from diffusers_erase.errors import ErasureError
from diffusers_erase.models.architectures import ARCHITECTURES
from diffusers_erase.models.model import Model
from diffusers_erase.models.text_states import encode
from tests import zoo


def test_model_of_a_model_is_itself(untrained):
    model = Model.of(untrained)
    assert Model.of(model) is model


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile's own
def test_denoiser_is_the_pipelines_or_the_module_itself_without_a_compiled_wrapper(untrained):
    assert Model.of(untrained).denoiser is untrained.unet
    assert Model.of(untrained.unet).denoiser is untrained.unet
    assert Model.of(torch.compile(untrained.unet)).denoiser is untrained.unet


def test_a_denoiser_of_an_unknown_class_is_refused():
    with pytest.raises(ErasureError, match=r"'UNet2DModel'.*Supported: UNet2DConditionModel"):
        Model.of(UNet2DModel(8, block_out_channels=(32, 32, 32, 32)))


def test_denoiser_of_a_pipeline_without_one_says_what_to_load(untrained):
    untrained.unet = None
    model = Model.of(untrained)
    with pytest.raises(ErasureError, match="'StableDiffusionPipeline' has no denoiser; load"):
        _ = model.denoiser
    assert model.encode(["a car"]).shape == (1, 24, 128)


def test_architecture_is_known_without_the_denoiser_from_what_the_pipeline_declares(untrained):
    untrained.unet = None
    assert Model.of(untrained).architecture is ARCHITECTURES["UNet2DConditionModel"]
    for family, name in (("sd3", "SD3"), ("flux", "Flux")):
        pipe = getattr(zoo, family)(untrained.tokenizer)
        pipe.transformer = None
        assert Model.of(pipe).architecture is ARCHITECTURES[f"{name}Transformer2DModel"]


def test_segments_are_the_tokenizers_whose_states_stand_one_after_another(untrained):
    assert Model.of(untrained).segments == ((untrained.tokenizer, None),)
    sd3 = zoo.sd3(untrained.tokenizer)
    assert Model.of(sd3).segments == (
        (sd3.tokenizer, sd3.tokenizer_max_length),
        (sd3.tokenizer_3, None),
    )
    flux = zoo.flux(untrained.tokenizer)
    assert Model.of(flux).segments == ((flux.tokenizer_2, None),)


def test_a_refiner_with_only_the_second_tokenizer_and_encoder_is_encoded(untrained):
    sdxl = zoo.sdxl(untrained.tokenizer)
    parts = {**sdxl.components, "text_encoder": None, "tokenizer": None}
    model = Model.of(StableDiffusionXLPipeline(**parts))
    assert model.tokenizer is sdxl.tokenizer_2
    assert model.segments == ((sdxl.tokenizer_2, None),)
    assert model.text_encoders == (sdxl.text_encoder_2,)


def test_encode_is_what_the_pipeline_encodes_and_states_carry_gradients(untrained):
    model = Model.of(untrained)
    assert torch.equal(model.encode(["a car", ""]), encode(untrained, ["a car", ""]))
    assert model.states(["a car"]).requires_grad
    assert not model.encode(["a car"]).requires_grad


def test_textless_says_what_is_missing(untrained):
    assert Model.of(untrained).textless == ""
    assert "'UNet2DConditionModel' is a denoiser" in Model.of(untrained.unet).textless
    untrained.text_encoder = None
    model = Model.of(untrained)
    assert model.textless == "'StableDiffusionPipeline' was loaded without a text encoder"
    with pytest.raises(ErasureError, match="was loaded without a text encoder; pass a pipeline"):
        model.encode(["a car"])
    assert Model.of({}).textless == "'dict' has no method `encode_prompt`"


def test_textless_names_what_an_unusual_encode_prompt_lacks(untrained, monkeypatch):
    monkeypatch.setattr(untrained, "encode_prompt", lambda device, **_: None)
    assert Model.of(untrained).textless == ""
    monkeypatch.setattr(untrained, "encode_prompt", lambda device: None)
    assert "'StableDiffusionPipeline' cannot be called" in Model.of(untrained).textless
    assert "unexpected keyword argument 'prompt'" in Model.of(untrained).textless
    monkeypatch.setattr(untrained, "encode_prompt", lambda prompt, query: None)
    assert "missing a required argument: 'query'" in Model.of(untrained).textless


def test_encode_names_the_pipeline_whose_encode_prompt_fails_for_want_of_a_part(untrained):
    untrained.tokenizer = None
    with pytest.raises(ErasureError, match=r"'StableDiffusionPipeline' failed.*tokenizers"):
        Model.of(untrained).encode(["a car"])


def test_untrainable_is_empty_for_stable_diffusion_and_a_reason_for_others(untrained):
    assert Model.of(untrained).untrainable == ""
    assert "needs more than a prompt" in Model.of(zoo.sdxl(untrained.tokenizer)).untrainable
    assert "no UNet to train on" in Model.of(zoo.flux(untrained.tokenizer)).untrainable


def test_noise_predictor_predicts_as_the_unet_does_and_refuses_other_pipelines(untrained):
    z, t = torch.randn(1, 4, 16, 16), torch.tensor([500])
    states = encode(untrained, ["a car"])
    found = Model.of(untrained).noise_predictor().teacher(z, t, states)
    assert torch.equal(found, untrained.unet(z, t, states).sample)
    with pytest.raises(ErasureError, match="got 'StableDiffusionXLPipeline'"):
        Model.of(zoo.sdxl(untrained.tokenizer)).noise_predictor()


def test_name_is_the_hub_id_or_the_name_of_the_folder_without_its_path(untrained, tmp_path):
    untrained.register_to_config(_name_or_path="user/model")
    assert Model.of(untrained).name == "user/model"
    folder = tmp_path / "my-model"
    folder.mkdir()
    untrained.register_to_config(_name_or_path=str(folder))
    assert Model.of(untrained).name == "my-model"
