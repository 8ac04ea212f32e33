"""Fixtures: no network, an untrained pipeline for algebra, the playground for behaviour."""

import copy
import socket
import warnings

import pytest
import torch


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderKL
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub import constants
    from transformers.utils import logging as transformers_logging

from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import ErasedConcept, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.models.architectures import fingerprint, projections
from diffusers_erase.playground import load_judge, load_pipeline
from diffusers_erase.playground.building import networks
from tests import zoo
from tests.loopback_hub import Hub


diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Loopback only."""
    connect = socket.socket.connect

    def guarded(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def untrained_parts(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = networks.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return {
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            norm_num_groups=4,
            sample_size=64,
            mid_block_add_attention=False,
        ).eval(),
        "text_encoder": networks.text_encoder(tokenizer).eval(),
        "tokenizer": tokenizer,
        "unet": zoo.narrow_unet(),
    }


@pytest.fixture
def untrained(untrained_parts):
    """A fresh pipeline of random weights: the playground's blocks, of fewer channels."""
    pipe = networks.assemble(**{**untrained_parts, "unet": copy.deepcopy(untrained_parts["unet"])})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def shipped():
    return load_pipeline()


@pytest.fixture
def playground(shipped):
    """A fresh copy of the playground's pipeline."""
    pipe = networks.assemble(
        vae=shipped.vae,
        text_encoder=shipped.text_encoder,
        tokenizer=shipped.tokenizer,
        unet=copy.deepcopy(shipped.unet),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def judge():
    return load_judge()


@pytest.fixture
def make_eraser():
    """Random erasers for a denoiser: `make_eraser(unet, seed=0, parts=(...), rank=2)`."""

    def make(unet, *, concept="car", seed=0, parts=("to_k", "to_v"), rank=2, scale=0.1):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator) * scale

        layers = projections(unet, parts)
        factors = {
            path: (normal(rank, layer.in_features), normal(layer.out_features, rank))
            for path, layer in layers.items()
        }
        config = EraserConfig(
            (ErasedConcept(concept, target="truck"),),
            recipe="random",
            fingerprint=fingerprint(unet),
            rank=rank,
        )
        return EraserAdapter((Lora(factors),), config)

    return make


@pytest.fixture
def picture():
    """The picture a pipeline draws for a prompt, as an array in 0 .. 1."""

    def draw(pipe, prompt="a photo of a red car", steps=2, **kwargs):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            prompt,
            num_inference_steps=steps,
            guidance_scale=5.0,
            generator=generator,
            output_type="np",
            **kwargs,
        ).images

    return draw


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that the client of this process talks to, with a cache and a token of its own."""
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_user")
        yield server
