import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from diffusers_erase.evaluation.detector import FromFunction
from diffusers_erase.evaluation.sampler import PipelineSampler, Sampling
from diffusers_erase.evaluation.suites import PromptCase
from diffusers_erase.playground.building import networks


PROMPTS = ("a photo of a car", "a red car at night", "a car on the beach")


@pytest.fixture(scope="session")
def small_parts(untrained_parts):
    tokenizer = untrained_parts["tokenizer"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "tokenizer": tokenizer,
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(4, 4, 8),
                norm_num_groups=2,
                sample_size=64,
                mid_block_add_attention=False,
            ).eval(),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=32,
                    intermediate_size=32,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    max_position_embeddings=24,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ).eval(),
            "unet": UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(8, 16),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=32,
                attention_head_dim=2,
                norm_num_groups=4,
            ).eval(),
        }


@pytest.fixture
def untrained(small_parts):
    """A pipeline smaller than the playground's, with pictures and texts of the same size."""
    pipe = networks.assemble(**{**small_parts, "unet": copy.deepcopy(small_parts["unet"])})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def cases():
    """Three prompts about a car with seeds; `fickle` finds a car in two of their pictures."""
    return [PromptCase("target", prompt, ("car",), 11 + i) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def fickle():
    """A detector that finds a car in half of all pictures, by the parity of their bytes."""
    return FromFunction(lambda picture: "car" if sum(picture.tobytes()) % 2 else "truck")


@pytest.fixture
def blind():
    """A detector that never finds a car."""
    return FromFunction(lambda picture: "truck")


@pytest.fixture
def sampler(untrained, fickle):
    """Two steps, and batches of two pictures for three cases."""
    return PipelineSampler(untrained, fickle, Sampling(steps=2, batch=2))
