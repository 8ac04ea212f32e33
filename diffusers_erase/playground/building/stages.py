"""The stages between the corpus and the shipped weights; a stage that is done is skipped."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from diffusers_erase.playground import model
from diffusers_erase.playground.building import networks
from diffusers_erase.playground.building.corpus import Corpus
from diffusers_erase.playground.building.tasks import DenoiserNetwork
from diffusers_erase.playground.drawing import landscape
from diffusers_erase.playground.painters import paint
from diffusers_erase.playground.world import BACKGROUNDS, STYLES


RECONSTRUCTED = 16_384
"""Number of pictures that the judge also sees as the autoencoder draws them."""


def make_tokens(folder: Path) -> None:
    """The tokenizer, and every caption as 24 token ids; the last row is the empty caption."""
    if (folder / "tokens.npy").is_file():
        return
    tokenizer = networks.write_tokenizer(folder / "tokenizer")
    corpus = Corpus(folder / "corpus")
    texts = [caption for four in corpus.captions[: corpus.train] for caption in four] + [""] * 4
    ids = tokenizer(texts, padding="max_length", truncation=True).input_ids
    np.save(folder / "tokens.npy", np.array(ids, np.int16).reshape(-1, 4, networks.TEXT_LENGTH))


def make_latents(folder: Path, device: torch.device) -> None:
    """Latents of unit variance of all training pictures, mirrored every other batch.

    Sets the scaling factor.
    """
    if (folder / "latents.npy").is_file():
        return
    corpus = Corpus(folder / "corpus")
    autoencoder = load_autoencoder(folder, device)
    latents = np.empty((corpus.train, 4, networks.LATENT_SIZE, networks.LATENT_SIZE), np.float32)
    for number, rows in enumerate(torch.arange(corpus.train).split(256)):
        pictures = corpus.batch(rows, device)
        pictures = pictures.flip(3) if number % 2 else pictures
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            modes = autoencoder.encode(pictures).latent_dist.mode()
            latents[rows.numpy()] = modes.float().cpu()
    scale = float(1 / latents.std())
    (folder / "scaling_factor.json").write_text(json.dumps(scale))
    np.save(folder / "latents.npy", (latents * scale).astype(np.float16))


def load_autoencoder(folder: Path, device: torch.device) -> Any:
    """The trained AutoencoderKL, frozen, with the scaling factor of `make_latents`."""
    autoencoder: Any = networks.vae()
    autoencoder.to(device).eval().requires_grad_(False)
    autoencoder.load_state_dict(load_file(folder / "vae.safetensors"))
    factor = folder / "scaling_factor.json"
    if factor.is_file():
        autoencoder.register_to_config(scaling_factor=json.loads(factor.read_text()))
    return autoencoder


@torch.no_grad()
def make_judge_examples(folder: Path, device: torch.device) -> None:
    """Write examples for the judge beside renderings: reconstructions, and pictures of no object.

    The latter are decoded noise and empty landscapes.
    """
    if (folder / "nothing.npy").is_file():
        return
    autoencoder = load_autoencoder(folder, device)
    generator = torch.Generator().manual_seed(0)
    scale = 1 / autoencoder.config.scaling_factor

    def decoded(latents: Tensor) -> NDArray[np.uint8]:
        with torch.autocast(device.type, torch.bfloat16):
            pictures = autoencoder.decode(latents.to(device) * scale).sample.float().cpu()
        levels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte()
        drawn: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).numpy()
        return drawn

    stored = np.load(folder / "latents.npy", mmap_mode="r")[:RECONSTRUCTED]
    latents = torch.from_numpy(stored.copy()).float()
    redrawn = []
    for rows in torch.arange(RECONSTRUCTED).split(256):
        noise = torch.randn(latents[rows].shape, generator=generator)
        strength = 0.12 * torch.rand((len(rows), 1, 1, 1), generator=generator)
        redrawn.append(decoded(latents[rows] + strength * noise))
    np.save(folder / "reconstructions.npy", np.concatenate(redrawn))
    noises = []
    for cells in (2, 3, 4, 6, 8, 16):
        noise = torch.randn(256, 4, cells, cells, generator=generator)
        noises.append(decoded(F.interpolate(noise, size=networks.LATENT_SIZE, mode="bicubic")))
    np.save(folder / "nothing.npy", np.concatenate([*noises, _empty_landscapes(1536)]))


def _empty_landscapes(count: int) -> NDArray[np.uint8]:
    rng = random.Random(0)
    landscapes = []
    for i in range(count):
        canvas, _ = landscape(rng.choice(BACKGROUNDS), rng)
        landscapes.append(paint(canvas, rng.choice(STYLES), np.random.default_rng(i)))
    return np.stack(landscapes)


def start_from(weights: Path, folder: Path) -> None:
    """Start the networks from `weights`, and take the autoencoder from there as it is.

    Only stages that have not begun are affected.
    """
    pipe: Any = model.load_pipeline(weights / "pipeline")
    parts = {"text_encoder": pipe.text_encoder, "unet": pipe.unet}
    denoiser = {
        f"{part}.{name}": value
        for part, network in parts.items()
        for name, value in network.state_dict().items()
    }
    judge = load_file(weights / "judge.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(pipe.vae.state_dict(), folder / "vae.safetensors")
    save_file(denoiser, folder / "denoiser.start.safetensors")
    save_file({k: v.float() for k, v in judge.items()}, folder / "judge.start.safetensors")


def export(folder: Path, weights: Path, device: torch.device) -> None:
    """Write the shipped weights in float16: a diffusers pipeline folder and the judge."""
    network = DenoiserNetwork(folder)
    network.load_state_dict(load_file(folder / "denoiser.safetensors"))
    pipe: Any = networks.assemble(
        vae=load_autoencoder(folder, torch.device("cpu")),
        text_encoder=network.text_encoder.eval(),
        tokenizer=networks.load_tokenizer(folder),
        unet=network.unet.eval(),
    )
    shutil.rmtree(weights / "pipeline", ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(weights / "pipeline")
    judge = load_file(folder / "judge.safetensors")
    save_file({name: value.half() for name, value in judge.items()}, weights / "judge.safetensors")
