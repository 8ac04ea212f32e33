"""A judge of rendered pictures: which objects, which style, colour and background, or none."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diffusers_erase.playground.drawing import PICTURE_SIZE
from diffusers_erase.playground.model import WEIGHTS
from diffusers_erase.playground.world import ARTISTS, BACKGROUNDS, COLOURS, OBJECTS, STYLES


@dataclass(frozen=True)
class JudgeVerdict:
    """The judge's findings in one picture."""

    label: str
    """The most certain object, also when the picture is rejected."""
    score: float
    """Its probability, 0 .. 1."""
    valid: bool
    """The picture shows a whole object; False for noise, blank and melted pictures."""
    objects: tuple[str, ...]
    """Objects with a probability above one half, the most certain first; empty if not valid."""
    style: str
    colour: str
    background: str
    ranked: tuple[str, ...] = ()
    """The five most certain objects."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Everything by the name it is asked for: objects, painter, colour, background.

        A painter's manner is seen also where there is no whole object.
        """
        painter = ARTISTS.get(self.style, self.style)
        return (*self.objects, painter, *((self.colour, self.background) if self.valid else ()))


class JudgeNetwork(nn.Module):
    """B x 3 x 64 x 64 -> logits: presence of objects, style, colour, background, validity."""

    HEADS: ClassVar[dict[str, int]] = {
        "object": len(OBJECTS),
        "style": len(STYLES),
        "colour": len(COLOURS),
        "background": len(BACKGROUNDS),
        "valid": 1,
    }

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, 32, stride=2),
            _block(32, 64, stride=2),
            _block(64, 64),
            _block(64, 128, stride=2),
            _block(128, 128),
            _block(128, 192, dilation=2),
            nn.Dropout2d(0.1),
        )
        self.heads = nn.ModuleDict()
        for name, count in self.HEADS.items():
            head = nn.Linear(192 if name == "object" else 2 * 192, count)
            if name == "object":
                nn.init.constant_(head.bias, -8.0)  # nothing anywhere to begin with
            self.heads[name] = head

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits by head; pictures in -1 .. 1.

        An object is present if it is seen at any of the 8 x 8 places (soft maximum), so that where
        it stands and what stands beside it need not be learnt; the rest is read off the whole.
        """
        features = self.body(pictures)
        places = features.flatten(2).transpose(1, 2)
        whole = torch.cat([places.mean(1), places.amax(1)], 1)
        return {
            name: head(places).logsumexp(1) if name == "object" else head(whole)
            for name, head in self.heads.items()
        }


def _block(channels: int, out: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, out), nn.ReLU())


class Judge:
    """`judge(images) -> [JudgeVerdict, ...]`: a `Detector` of `diffusers_erase.evaluation`."""

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval()

    @cached_property
    def info(self) -> dict[str, str]:
        """The judge's name, and the digest of its weights."""
        weights = save(self.network.state_dict())
        digest = hashlib.blake2b(weights, digest_size=16).hexdigest()
        return {"name": "playground judge", "weights": digest}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image] | np.ndarray | Tensor) -> list[JudgeVerdict]:
        """One verdict per picture.

        Args:
            images: PIL pictures, an N x 64 x 64 x 3 uint8 array, or an N x 3 x 64 x 64 tensor in
                -1 .. 1.

        Raises:
            ValueError: pictures of another size.
        """
        pictures = _pictures(images)
        verdicts: list[JudgeVerdict] = []
        for chunk in pictures.split(256):
            verdicts += self._verdicts(self.network(chunk))
        return verdicts

    def _verdicts(self, logits: dict[str, Tensor]) -> list[JudgeVerdict]:
        presence, valid = logits["object"].sigmoid(), logits["valid"][:, 0] > 0
        names = {"style": STYLES, "colour": COLOURS, "background": BACKGROUNDS}
        best = {head: logits[head].argmax(1).tolist() for head in names}
        verdicts = []
        for i, scores in enumerate(presence):
            order = scores.argsort(descending=True).tolist()
            seen = tuple(OBJECTS[k] for k in order[:4] if scores[k] > 0.5)
            whole = bool(valid[i]) and bool(seen)
            rest = {head: known[best[head][i]] for head, known in names.items()}
            label, score = OBJECTS[order[0]], scores[order[0]].item()
            first = tuple(OBJECTS[k] for k in order[:5])
            verdicts.append(
                JudgeVerdict(label, score, whole, seen if whole else (), **rest, ranked=first)
            )
        return verdicts


def to_tensor(pictures: NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """N x H x W x 3 uint8 -> N x 3 x H x W in -1 .. 1."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _pictures(images: Sequence[Image.Image] | np.ndarray | Tensor) -> Tensor:
    if isinstance(images, Tensor):
        pictures = images.float()
    elif isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype == np.uint8:
        pictures = to_tensor(images)
    elif isinstance(images, np.ndarray):
        raise ValueError(
            f"The judge reads N x 64 x 64 x 3 uint8 arrays; got {images.dtype} of {images.shape}."
        )
    else:
        pictures = to_tensor(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    if pictures.shape[1:] != (3, PICTURE_SIZE, PICTURE_SIZE):
        raise ValueError(
            f"The judge reads 64 x 64 colour pictures; got {tuple(pictures.shape[1:])}. "
            "Resize them first."
        )
    return pictures


def load_judge(folder: str | Path | None = None) -> Judge:
    """The judge shipped with the package, or the one in `folder`.

    Raises:
        FileNotFoundError: there is no judge; the message says how to get one.
    """
    path = (Path(folder) if folder is not None else WEIGHTS) / "judge.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no judge at '{path}'; install diffusers_erase again, or build one in its "
            "repository with `python -m diffusers_erase.playground.building`."
        )
    network = JudgeNetwork()
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return Judge(network)
