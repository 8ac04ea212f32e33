import pytest
import torch
from diffusers import DDIMScheduler
from transformers import CLIPTokenizer

from diffusers_erase.playground.building import networks
from diffusers_erase.playground.world import words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return networks.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def inside(tokenizer, text):
    """The tokens between start and end."""
    start, *ids, end = tokenizer(text).input_ids
    assert (start, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return ids


def test_every_word_of_the_world_is_one_token(tokenizer):
    assert isinstance(tokenizer, CLIPTokenizer)
    ids = [inside(tokenizer, word) for word in words()]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(words())
    assert inside(tokenizer, "a Fire TRUCK") == inside(tokenizer, "a fire truck")
    assert len(inside(tokenizer, "a fire truck")) == 3


@pytest.mark.parametrize("text", ["zebra", "cars", "sun", "Žlutý kůň", "x9!"])
def test_other_words_fall_back_to_letters(tokenizer, text):
    ids = inside(tokenizer, text)
    assert len(ids) > 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")


def test_captions_are_24_tokens_long(tokenizer):
    assert tokenizer.model_max_length == 24
    ids = tokenizer(["", "a red car", "car " * 40], padding="max_length", truncation=True).input_ids
    assert {len(row) for row in ids} == {24}
    assert ids[1][4:] == [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * 19
    assert ids[2][-1] == tokenizer.eos_token_id


def test_a_tokenizer_written_twice_is_the_same(tokenizer, tmp_path):
    assert networks.write_tokenizer(tmp_path / "again").get_vocab() == tokenizer.get_vocab()


def test_text_enters_the_denoiser_through_seven_attentions(untrained):
    reads_text = [name for name in untrained.unet.attn_processors if ".attn2." in name]
    assert len(reads_text) == 7
    assert untrained.unet.config.cross_attention_dim == networks.TEXT_WIDTH
    assert not [name for name in reads_text if "down_blocks.0" in name or "up_blocks.2" in name]


def test_the_schedule_is_that_of_stable_diffusion_1():
    scheduler = networks.scheduler()
    assert isinstance(scheduler, DDIMScheduler)
    released = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    assert {key: scheduler.config[key] for key in released} == released
    assert scheduler.alphas_cumprod[[0, -1]].tolist() == pytest.approx([0.99915, 0.00466], rel=1e-3)
    assert DDIMScheduler().alphas_cumprod[-1] != scheduler.alphas_cumprod[-1]


def test_the_autoencoder_makes_a_latent_of_four_by_four_pixels(untrained):
    pictures = torch.zeros(1, 3, 64, 64)
    latents = untrained.vae.encode(pictures).latent_dist.mode()
    assert latents.shape == (1, 4, 16, 16)
    assert untrained.vae.decode(latents).sample.shape == pictures.shape
