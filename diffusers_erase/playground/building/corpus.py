"""Training data on disk: pictures of the world with labels and captions."""

import json
import multiprocessing
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusers_erase.playground.drawing import PICTURE_SIZE
from diffusers_erase.playground.judge import to_tensor
from diffusers_erase.playground.world import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    STYLES,
    Scene,
    captions,
    render,
    sample_scene,
)


HELD_OUT = 2048
"""Number of pictures, the last of a corpus, that are never trained on."""

ABSENT = -1
"""Label where a picture has none: no second object, or two things of different colours."""


@dataclass(frozen=True)
class Corpus:
    """A folder of pictures (N x 64 x 64 x 3 uint8), labels (N x 5) and captions (N x 4)."""

    folder: Path

    @cached_property
    def pictures(self) -> NDArray[np.uint8]:
        """Memory-mapped, N x 64 x 64 x 3."""
        mapped: NDArray[np.uint8] = np.load(self.folder / "pictures.npy", mmap_mode="r")
        return mapped

    @cached_property
    def labels(self) -> Tensor:
        """N x 5: first object, second object, colour, style, background; ABSENT where none is."""
        return torch.from_numpy(np.load(self.folder / "labels.npy"))

    @cached_property
    def captions(self) -> list[list[str]]:
        """Four captions a picture."""
        written: list[list[str]] = json.loads((self.folder / "captions.json").read_text())
        return written

    @property
    def train(self) -> int:
        """Number of training pictures, which are the first ones."""
        return len(self.pictures) - HELD_OUT

    def batch(self, indices: Tensor, device: torch.device | None = None) -> Tensor:
        """Pictures as B x 3 x 64 x 64 in -1 .. 1."""
        return to_tensor(self.pictures[indices.numpy()], device)


def label(scene: Scene) -> tuple[int, int, int, int, int]:
    """The five labels of a scene."""
    objects = [OBJECTS.index(thing.object) for thing in scene.things]
    colours = {COLOURS.index(thing.colour) for thing in scene.things}
    return (
        objects[0],
        objects[1] if len(objects) == 2 else ABSENT,
        colours.pop() if len(colours) == 1 else ABSENT,
        STYLES.index(scene.style),
        BACKGROUNDS.index(scene.background),
    )


def make_corpus(folder: Path, count: int, *, seed: int = 0, processes: int = 2) -> Corpus:
    """Render `count` scenes as often as the world has them.

    Does nothing if the folder holds them already.
    """
    if not (folder / "captions.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (count, PICTURE_SIZE, PICTURE_SIZE, 3)
        pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, shape)
        labels, texts = [], []
        seeds = range(seed * count, (seed + 1) * count)
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for i, example in enumerate(pool.imap(_example, seeds, chunksize=256)):
                pictures[i], row, written = example
                labels.append(row)
                texts.append(written)
        pictures.flush()
        np.save(folder / "labels.npy", np.array(labels))
        (folder / "captions.json").write_text(json.dumps(texts))
    return Corpus(folder)


def _example(index: int) -> tuple[NDArray[np.uint8], tuple[int, ...], list[str]]:
    scene = sample_scene(random.Random(index))
    return render(scene, index), label(scene), captions(scene, seed=index)
