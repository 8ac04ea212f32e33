"""`python -m diffusers_erase.playground.build`: the whole playground from nothing.

World -> pictures -> autoencoder -> latents -> text encoder and denoiser -> judge -> the weights
the package ships. Every stage leaves its result in the work folder and is skipped the next time;
an interrupted one goes on where it was.
"""

import argparse
import json
import logging
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from diffusers_erase.playground import model
from diffusers_erase.playground.corpus import UNSAID, Corpus, make_corpus, to_tensor
from diffusers_erase.playground.drawing import landscape
from diffusers_erase.playground.fitting import Plan, fit
from diffusers_erase.playground.judge import JudgeNetwork, smear
from diffusers_erase.playground.painters import paint
from diffusers_erase.playground.world import BACKGROUNDS, STYLES


logger = logging.getLogger(__name__)

PICTURES = 74_048
AUTOENCODER = Plan("vae", steps=3400, batch=64, learning_rate=2e-3, weight_decay=1e-4, ema=0.995)
DENOISER = Plan("denoiser", steps=12_000, batch=64, learning_rate=1e-3, ema=0.998, half=True)
JUDGE = Plan("judge", steps=6000, batch=128, learning_rate=2e-3, weight_decay=1e-2, ema=0.995)

RECONSTRUCTED = 16_384
"""So many pictures are also shown to the judge as the autoencoder draws them."""


class AutoencoderTask:
    """L1 + 2 L2 + .3 |gradient| + 1.5 |mean of 4 x 4| + 2e-4 KL.

    On 32-pixel crops, then on whole pictures. The pooled term keeps colours true, the gradient term
    keeps outlines sharp.
    """

    WHOLE_FROM = 0.78
    """Progress from which on whole pictures are shown (a third as many, for the same time)."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        autoencoder: Any = model.vae()
        self.network = autoencoder.to(device).train()
        self.corpus, self.device = Corpus(folder / "corpus"), device

    def loss(self, generator: torch.Generator, *, batch: int, progress: float) -> Tensor:
        """The reconstruction loss on a random batch."""
        whole = progress >= self.WHOLE_FROM
        count = batch // 3 if whole else batch
        indices = torch.randint(self.corpus.train, (count,), generator=generator)
        pictures = self.corpus.batch(indices, self.device)
        if not whole:
            top, left = (4 * torch.randint(9, (2,), generator=generator)).tolist()
            pictures = pictures[:, :, top : top + 32, left : left + 32]
        if torch.rand((), generator=generator) < 0.5:
            pictures = pictures.flip(3)
        pictures = pictures.contiguous()
        posterior = self.network.encode(pictures).latent_dist
        error = self.network.decode(posterior.sample()).sample.float() - pictures
        slope = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        pooled = F.avg_pool2d(error, 4).abs().mean()
        divergence: Tensor = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss: Tensor = error.abs().mean() + 2 * error.pow(2).mean() + 0.3 * slope + 1.5 * pooled
        return loss + 2e-4 * divergence


class Denoiser(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        tokenizer = load_tokenizer(folder)
        torch.manual_seed(0)
        self.text_encoder = model.text_encoder(tokenizer)
        self.unet: Any = model.unet()


class DenoiserTask:
    """min-SNR(5)-weighted || eps - eps(z_t, t, c) ||^2; a tenth of the captions is empty.

    Scenes of two things come twice as often as in the corpus: they are learnt last.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        network = Denoiser(folder)
        _begin_from(network, folder / "denoiser.start.safetensors")
        self.network = network.to(device).train()
        self.device = device
        # On a CPU the backward of plain attention is faster than that of fused attention.
        if device.type == "cpu":
            self.network.unet.set_attn_processor(AttnProcessor())
            self.network.text_encoder.set_attn_implementation("eager")
        self.latents = torch.from_numpy(np.load(folder / "latents.npy"))
        self.tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
        self.empty = self.tokens[-1, 0]
        corpus = Corpus(folder / "corpus")
        pairs = (corpus.labels[: corpus.train, 1] != UNSAID).nonzero()[:, 0]
        self.rows = torch.cat([torch.arange(corpus.train), pairs])
        scheduler: Any = model.scheduler()
        self.alphas: Tensor = scheduler.alphas_cumprod

    def loss(self, generator: torch.Generator, *, batch: int, progress: float) -> Tensor:
        """The denoising loss on a random batch with stratified timesteps."""
        rows = self.rows[torch.randint(len(self.rows), (batch,), generator=generator)]
        z = self.latents[rows].to(self.device).float()
        tokens = self.tokens[rows, torch.randint(4, (batch,), generator=generator)]
        unsaid = torch.rand(batch, generator=generator) < 0.1
        tokens = torch.where(unsaid[:, None], self.empty, tokens)
        strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (strata[torch.randperm(batch, generator=generator)] * 1000).long().clamp(max=999)
        noise = torch.randn_like(z)
        alpha = self.alphas[t].view(-1, 1, 1, 1).to(self.device)
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        states = self.network.text_encoder(input_ids=tokens.to(self.device))[0]
        noisy = noisy.to(states.dtype, memory_format=torch.channels_last)
        predicted = self.network.unet(noisy, t.to(self.device), states, return_dict=False)[0]
        error = (predicted.float() - noise).pow(2).mean((1, 2, 3))
        snr = self.alphas[t] / (1 - self.alphas[t])
        loss: Tensor = (error * (snr.clamp(max=5) / snr).to(self.device)).mean()
        return loss


class JudgeTask:
    """Presence of every object, style, colour, background, and whether there is anything to judge.

    A batch is rendered pictures, the autoencoder's versions of pictures, empty landscapes, and
    ruined ones.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        torch.manual_seed(0)
        network = JudgeNetwork()
        _begin_from(network, folder / "judge.start.safetensors")
        self.network = network.to(device).train()
        self.corpus, self.device = Corpus(folder / "corpus"), device
        self.reconstructions = np.load(folder / "reconstructions.npy", mmap_mode="r")
        self.nothing = np.load(folder / "nothing.npy", mmap_mode="r")

    def loss(self, generator: torch.Generator, *, batch: int, progress: float) -> Tensor:
        """Binary cross-entropy for presence and validity, cross-entropy for the rest.

        The rest counts where it is defined.
        """

        def draw(limit: int, count: int) -> Tensor:
            return torch.randint(limit, (count,), generator=generator)

        shares = {"seen": batch * 3 // 8, "redrawn": batch * 3 // 8, "nothing": batch // 8}
        seen = draw(self.corpus.train, shares["seen"])
        redrawn = draw(len(self.reconstructions), shares["redrawn"])
        nothing = draw(len(self.nothing), shares["nothing"])
        again = to_tensor(self.reconstructions[redrawn.numpy()], self.device)
        good = torch.cat([self.corpus.batch(seen, self.device), again])
        empty = to_tensor(self.nothing[nothing.numpy()], self.device)
        count = batch - len(good) - len(empty)
        ruined = torch.cat(
            [
                smear(self.corpus.batch(draw(self.corpus.train, n), self.device), generator)
                for n in _split(count, 4)
            ]
        )
        pictures = _degraded(torch.cat([good, empty]), generator)
        pictures = torch.cat([pictures, ruined]).to(memory_format=torch.channels_last)
        logits = {name: value.float() for name, value in self.network(pictures).items()}
        labels = self.corpus.labels[torch.cat([seen, redrawn])].to(self.device)
        presence = torch.zeros_like(logits["object"])
        for column in (0, 1):
            rows = (labels[:, column] != UNSAID).nonzero()[:, 0]
            presence[rows, labels[rows, column]] = 1
        whole = (torch.arange(batch, device=self.device) < len(good)).float()
        loss = 20 * F.binary_cross_entropy_with_logits(logits["object"], presence)
        loss = loss + F.binary_cross_entropy_with_logits(logits["valid"][:, 0], whole)
        for column, head in ((2, "colour"), (3, "style"), (4, "background")):
            loss = loss + F.cross_entropy(
                logits[head][: len(good)], labels[:, column], ignore_index=UNSAID
            )
        return loss


def _split(count: int, parts: int) -> list[int]:
    return [count // parts + (i < count % parts) for i in range(parts)]


def _degraded(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A little blur, noise or mirroring, so that a soft picture of a car is still a car."""
    dice = torch.rand(3, generator=generator)
    if dice[0] < 0.5:
        pictures = pictures.flip(3)
    if dice[1] < 0.4:
        pictures = 0.5 * pictures + 0.5 * F.avg_pool2d(pictures, 3, 1, 1)
    return pictures + torch.randn_like(pictures) * 0.08 * dice[2].item()


def make_tokens(folder: Path) -> None:
    """The tokenizer, and every caption as 24 token ids; the last row is the empty caption."""
    if (folder / "tokens.npy").is_file():
        return
    tokenizer = model.write_tokenizer(folder / "tokenizer")
    corpus = Corpus(folder / "corpus")
    said = [caption for four in corpus.captions[: corpus.train] for caption in four] + [""] * 4
    ids = tokenizer(said, padding="max_length", truncation=True).input_ids
    np.save(folder / "tokens.npy", np.array(ids, np.int16).reshape(-1, 4, model.TEXT_LENGTH))


def make_latents(folder: Path, device: torch.device) -> None:
    """Latents of unit variance of all training pictures, mirrored every other batch.

    Sets the scaling factor.
    """
    if (folder / "latents.npy").is_file():
        return
    corpus = Corpus(folder / "corpus")
    autoencoder = load_autoencoder(folder, device)
    latents = np.empty((corpus.train, 4, model.LATENT_SIZE, model.LATENT_SIZE), np.float32)
    for number, rows in enumerate(torch.arange(corpus.train).split(256)):
        pictures = corpus.batch(rows, device)
        pictures = pictures.flip(3) if number % 2 else pictures
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            modes = autoencoder.encode(pictures).latent_dist.mode()
            latents[rows.numpy()] = modes.float().cpu()
    scale = float(1 / latents.std())
    (folder / "scaling_factor.json").write_text(json.dumps(scale))
    np.save(folder / "latents.npy", (latents * scale).astype(np.float16))


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of `make_tokens`."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
        folder / "tokenizer", model_max_length=model.TEXT_LENGTH
    )
    return tokenizer


def load_autoencoder(folder: Path, device: torch.device) -> Any:
    """The trained AutoencoderKL, frozen, with the scaling factor of `make_latents`."""
    autoencoder: Any = model.vae()
    autoencoder.to(device).eval().requires_grad_(False)
    autoencoder.load_state_dict(load_file(folder / "vae.safetensors"))
    factor = folder / "scaling_factor.json"
    if factor.is_file():
        autoencoder.register_to_config(scaling_factor=json.loads(factor.read_text()))
    return autoencoder


@torch.no_grad()
def make_lessons(folder: Path, device: torch.device) -> None:
    """What the judge sees beside renderings: reconstructions, empty landscapes, decoded noise."""
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
    dreams = []
    for cells in (2, 3, 4, 6, 8, 16):
        noise = torch.randn(256, 4, cells, cells, generator=generator)
        dreams.append(decoded(F.interpolate(noise, size=model.LATENT_SIZE, mode="bicubic")))
    np.save(folder / "nothing.npy", np.concatenate([*dreams, _empty_landscapes(1536)]))


def _empty_landscapes(count: int) -> NDArray[np.uint8]:
    rng = random.Random(0)
    landscapes = []
    for i in range(count):
        canvas, _ = landscape(rng.choice(BACKGROUNDS), rng)
        landscapes.append(paint(canvas, rng.choice(STYLES), np.random.default_rng(i)))
    return np.stack(landscapes)


def _begin_from(network: nn.Module, path: Path) -> None:
    """Take the weights in the file as the first ones, if there is such a file."""
    if path.is_file():
        network.load_state_dict(load_file(path))


def start_from(weights: Path, folder: Path) -> None:
    """Let the networks begin as the ones in `weights`; the autoencoder stays as it is there.

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
    network = Denoiser(folder)
    network.load_state_dict(load_file(folder / "denoiser.safetensors"))
    pipe: Any = model.assemble(
        vae=load_autoencoder(folder, torch.device("cpu")),
        text_encoder=network.text_encoder.eval(),
        tokenizer=load_tokenizer(folder),
        unet=network.unet.eval(),
    )
    shutil.rmtree(weights / "pipeline", ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(weights / "pipeline")
    judge = load_file(folder / "judge.safetensors")
    save_file({name: value.half() for name, value in judge.items()}, weights / "judge.safetensors")


def main() -> None:
    """Run every stage that is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    work, weights = Path("build/playground"), model.WEIGHTS
    parser.add_argument("--work", type=Path, default=work, help="intermediate results")
    parser.add_argument("--weights", type=Path, default=weights, help="where the result goes")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--start", type=Path, help="weights to go on from, for example the shipped")
    parser.add_argument("--steps", type=int, default=DENOISER.steps, help="of the denoiser")
    parser.add_argument("--learning-rate", type=float, default=DENOISER.learning_rate)
    parser.add_argument("--vae-steps", type=int, default=AUTOENCODER.steps)
    parser.add_argument("--judge-steps", type=int, default=JUDGE.steps)
    parser.add_argument("--batch-scale", type=int, default=1, help="more per step, for a GPU")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, processes = arguments.work, arguments.processes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def plan(default: Plan, steps: int) -> Plan:
        return replace(default, steps=steps, batch=arguments.batch_scale * default.batch)

    autoencoder = plan(AUTOENCODER, arguments.vae_steps)
    denoiser = plan(DENOISER, arguments.steps)
    denoiser = replace(denoiser, learning_rate=arguments.learning_rate)
    judge = plan(JUDGE, arguments.judge_steps)
    make_corpus(folder / "corpus", PICTURES, processes=processes)
    make_tokens(folder)
    if arguments.start:
        start_from(arguments.start, folder)
    fit(AutoencoderTask, folder, autoencoder, processes=processes)
    make_latents(folder, device)
    fit(DenoiserTask, folder, denoiser, processes=processes)
    make_lessons(folder, device)
    fit(JudgeTask, folder, judge, processes=processes)
    export(folder, arguments.weights, device)
    logger.info("The playground is in %s", arguments.weights)


if __name__ == "__main__":
    main()
