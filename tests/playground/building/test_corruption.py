import numpy as np
import pytest
import torch

from diffusers_erase.playground import Scene, Thing, render
from diffusers_erase.playground.building.corruption import corrupted, degraded
from diffusers_erase.playground.judge import to_tensor


KINDS = ("warped", "shuffled", "blurred", "drowned", "smooth", "blank")


@pytest.fixture(scope="module")
def pictures():
    scenes = [Scene((Thing(name),), background="field") for name in ("car", "oak", "cat", "star")]
    return np.stack([render(scene, seed) for seed, scene in enumerate(scenes)])


def seed_of(kind):
    """The first seed with which `corrupted` ruins pictures in this way."""
    return next(
        seed
        for seed in range(100)
        if torch.randint(6, (), generator=torch.Generator().manual_seed(seed)) == kind
    )


def ruin(batch, seed):
    return corrupted(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", range(6), ids=KINDS)
def test_smearing_ruins_pictures_and_keeps_their_range(pictures, kind):
    batch = to_tensor(pictures)
    kept, seed = batch.clone(), seed_of(kind)
    ruined = ruin(batch, seed)
    assert torch.equal(batch, kept)
    assert ruined.shape == batch.shape
    assert ruined.abs().max() <= 1 + 1e-5
    assert (ruined - batch).abs().mean() > 0.05
    torch.manual_seed(kind)
    assert torch.equal(ruined, ruin(batch, seed))


def test_every_smear_forgets_something_else(pictures):
    batch = to_tensor(pictures)
    ruined = [ruin(batch, seed_of(kind)) for kind in range(6)]
    # Shuffled tiles are the same pixels elsewhere.
    pixels = batch.flatten().sort().values
    same = [torch.equal(picture.flatten().sort().values, pixels) for picture in ruined]
    assert same == [kind == "shuffled" for kind in KINDS]
    # Two kinds put something new in the place of the picture, whatever it showed.
    others = [ruin(batch.flip(0), seed_of(kind)) for kind in range(6)]
    forgotten = [torch.equal(one, other) for one, other in zip(ruined, others, strict=True)]
    assert forgotten == [kind in ("smooth", "blank") for kind in KINDS]
    # What is blank has no shapes: its pixels keep close to one colour.
    flat = [(one - one.mean((2, 3), keepdim=True)).std() < 0.1 for one in ruined]
    assert flat == [kind == "blank" for kind in KINDS]


def test_degraded_pictures_still_look_like_themselves(pictures):
    batch = to_tensor(pictures)
    for seed in range(8):
        shown = degraded(batch, torch.Generator().manual_seed(seed))
        assert shown.shape == batch.shape
        apart = min((shown - other).abs().mean() for other in (batch, batch.flip(3)))
        assert apart < 0.1 < (shown - batch.flip(0)).abs().mean()
