"""The three networks that are fitted, each with its loss on a random batch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffusers_erase.playground.building import networks
from diffusers_erase.playground.building.corpus import ABSENT, Corpus
from diffusers_erase.playground.building.corruption import corrupted, degraded
from diffusers_erase.playground.judge import JudgeNetwork, to_tensor


class AutoencoderTask:
    """L1 + 2 L2 + .3 |gradient| + 1.5 |mean of 4 x 4| + 2e-4 KL.

    On 32-pixel crops, then on whole pictures. The pooled term keeps colours true, the gradient term
    keeps outlines sharp.
    """

    WHOLE_FROM = 0.78
    """Progress from which on whole pictures are shown (a third as many, for the same time)."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        autoencoder: Any = networks.vae()
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


class DenoiserNetwork(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        tokenizer = networks.load_tokenizer(folder)
        torch.manual_seed(0)
        self.text_encoder = networks.text_encoder(tokenizer)
        self.unet: Any = networks.unet()


class DenoiserTask:
    """min-SNR(5)-weighted || eps - eps(z_t, t, c) ||^2; a tenth of the captions is empty.

    Scenes of two things come twice as often as in the corpus: they are learnt last.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        network = DenoiserNetwork(folder)
        begin_from(network, folder / "denoiser.start.safetensors")
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
        pairs = (corpus.labels[: corpus.train, 1] != ABSENT).nonzero()[:, 0]
        self.rows = torch.cat([torch.arange(corpus.train), pairs])
        scheduler: Any = networks.scheduler()
        self.alphas: Tensor = scheduler.alphas_cumprod

    def loss(self, generator: torch.Generator, *, batch: int, progress: float) -> Tensor:
        """The denoising loss on a random batch with stratified timesteps."""
        rows = self.rows[torch.randint(len(self.rows), (batch,), generator=generator)]
        z = self.latents[rows].to(self.device).float()
        tokens = self.tokens[rows, torch.randint(4, (batch,), generator=generator)]
        dropped = torch.rand(batch, generator=generator) < 0.1
        tokens = torch.where(dropped[:, None], self.empty, tokens)
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
        begin_from(network, folder / "judge.start.safetensors")
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
                corrupted(self.corpus.batch(draw(self.corpus.train, n), self.device), generator)
                for n in _split(count, 4)
            ]
        )
        pictures = degraded(torch.cat([good, empty]), generator)
        pictures = torch.cat([pictures, ruined]).to(memory_format=torch.channels_last)
        logits = {name: value.float() for name, value in self.network(pictures).items()}
        labels = self.corpus.labels[torch.cat([seen, redrawn])].to(self.device)
        presence = torch.zeros_like(logits["object"])
        for column in (0, 1):
            rows = (labels[:, column] != ABSENT).nonzero()[:, 0]
            presence[rows, labels[rows, column]] = 1
        whole = (torch.arange(batch, device=self.device) < len(good)).float()
        loss = 20 * F.binary_cross_entropy_with_logits(logits["object"], presence)
        loss = loss + F.binary_cross_entropy_with_logits(logits["valid"][:, 0], whole)
        for column, head in ((2, "colour"), (3, "style"), (4, "background")):
            loss = loss + F.cross_entropy(
                logits[head][: len(good)], labels[:, column], ignore_index=ABSENT
            )
        return loss


def _split(count: int, parts: int) -> list[int]:
    return [count // parts + (i < count % parts) for i in range(parts)]


def begin_from(network: nn.Module, path: Path) -> None:
    """Take the weights in the file as the first ones, if there is such a file."""
    if path.is_file():
        network.load_state_dict(load_file(path))
