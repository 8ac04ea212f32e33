import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusers_erase.playground import load_pipeline


def draw(pipe, prompt="a photo of a red car", **kwargs):
    generator = torch.Generator().manual_seed(0)
    return pipe(
        prompt, num_inference_steps=1, generator=generator, output_type="np", **kwargs
    ).images


def test_assembled_networks_are_a_stable_diffusion_pipeline(untrained):
    assert type(untrained) is StableDiffusionPipeline
    picture = draw(untrained)
    assert picture.shape == (1, 64, 64, 3)
    assert np.isfinite(picture).all()
    assert np.array_equal(picture, draw(untrained))
    assert not np.array_equal(picture, draw(untrained, "a photo of a blue oak"))


def test_load_pipeline_reads_a_saved_folder(untrained, tmp_path):
    untrained.save_pretrained(tmp_path / "pipeline")
    assert np.array_equal(draw(load_pipeline(tmp_path / "pipeline")), draw(untrained))
    half = load_pipeline(tmp_path / "pipeline", dtype=torch.float16)
    assert {part.dtype for part in (half.unet, half.vae, half.text_encoder)} == {torch.float16}


def test_load_pipeline_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m diffusers_erase\.playground\.building"):
        load_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pipeline(str(tmp_path / "nowhere"))
