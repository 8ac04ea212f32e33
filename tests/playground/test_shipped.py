"""The weights that travel with the package: small, and good at what the documentation says."""

import random

import numpy as np
import pytest
import torch

from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.playground import (
    ARTISTS,
    COLOURS,
    OBJECTS,
    Scene,
    Thing,
    prompt,
    render,
    sample_scene,
)
from diffusers_erase.playground.judge import to_tensor
from diffusers_erase.playground.model import WEIGHTS


FRESH = 20_000_000
"""Scenes from this seed on are in no corpus, and in no table of the documentation."""


@pytest.fixture(scope="module")
def fresh():
    scenes = [sample_scene(random.Random(FRESH + i)) for i in range(400)]
    return scenes, np.stack([render(scene, FRESH + i) for i, scene in enumerate(scenes)])


def test_they_are_safetensors_of_at_most_25_megabytes():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_the_judge_is_right_about_fresh_renderings(judge, fresh):
    scenes, pictures = fresh
    verdicts = list(zip(scenes, judge(pictures), strict=True))
    single = [(s, v) for s, v in verdicts if len(s.things) == 1]
    assert np.mean([v.label == s.things[0].object for s, v in single]) >= 0.95
    assert np.mean([v.colour == s.things[0].colour for s, v in single]) >= 0.95
    assert np.mean([v.style == s.style for s, v in verdicts]) >= 0.97


def test_the_judge_rejects_what_shows_nothing(judge):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200, 3, 64, 64, generator=generator).clamp(-1, 1)
    blank = (torch.rand(200, 3, 1, 1, generator=generator) * 2 - 1).expand(-1, -1, 64, 64)
    for pictures in (noise, blank):
        assert np.mean([not verdict.valid for verdict in judge(pictures)]) >= 0.98


def test_the_autoencoder_keeps_24_decibels(shipped, fresh):
    pictures = to_tensor(fresh[1][:40])
    with torch.no_grad():
        redrawn = shipped.vae.decode(shipped.vae.encode(pictures).latent_dist.mode()).sample
    error = (redrawn.clamp(-1, 1) - pictures).pow(2).mean()
    assert 10 * torch.log10(4 / error) >= 23.5


@pytest.mark.slow
def test_objects_and_painters_are_drawn_as_asked(shipped, judge):
    plain = [Scene((Thing(o, COLOURS[i % 8]),)) for i, o in enumerate(OBJECTS)]
    painted = [Scene((Thing(OBJECTS[5 * i], COLOURS[i]),), s) for i, s in enumerate(ARTISTS)]
    verdicts = judge(
        draw(shipped, [prompt(scene) for scene in plain + painted], steps=10, batch=25)
    )
    right = [s.things[0].object in v.objects for s, v in zip(plain, verdicts, strict=False)]
    assert np.mean(right) >= 0.8
    assert (
        np.mean([s.style == v.style for s, v in zip(painted, verdicts[len(plain) :], strict=True)])
        >= 0.8
    )
