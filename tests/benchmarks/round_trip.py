"""Train, push to a Hub on loopback, load in a fresh process: the same pictures, pixel for pixel.

python tests/benchmarks/round_trip.py            # --quick solves for the eraser instead of training
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from huggingface_hub import ModelCard, RepoCard, constants, metadata_update
from PIL import Image

from diffusers_erase import EraserAdapter, erase
from diffusers_erase.evaluation.pictures import draw
from diffusers_erase.playground import OBJECTS, load_pipeline
from diffusers_erase.storage.hub import find_erasers


REPO = "user/erase-car"
PROMPTS = [
    f"a photo of a {colour} {thing}" for thing in ("car", "bus") for colour in ("red", "blue")
]


def pictures(pipe, *, quick):
    return np.stack([np.asarray(p) for p in draw(pipe, PROMPTS, steps=3 if quick else 10)])


def publish(folder, *, quick):
    """Make the eraser, draw with it and push it, in one process."""
    pipe = load_pipeline()
    base = pictures(pipe, quick=quick)
    started = time.perf_counter()
    eraser = erase(
        pipe, "car", vocabulary=OBJECTS, recipe="closed-form" if quick else None, check=False
    )
    print(f"made in {time.perf_counter() - started:.1f} s ({eraser.config.recipe})")
    pipe.load_erasure(eraser)
    erased = pictures(pipe, quick=quick)
    np.savez(folder / "local.npz", base=base, erased=erased)
    shown = dict(zip(PROMPTS, map(Image.fromarray, erased), strict=True))
    eraser.save_pretrained(folder / "eraser")
    print(f"pushed: {eraser.push_to_hub(REPO, images=shown)}")


def fetch(folder, *, quick):
    """Load it in a fresh process, with us and with plain diffusers; edit its card."""
    local = np.load(folder / "local.npz")
    pipe = load_pipeline()
    pipe.load_erasure(REPO)
    (loaded,) = pipe.list_erasures().values()
    ours = pictures(pipe, quick=quick)
    pipe.unload_erasures()
    assert (pictures(pipe, quick=quick) == local["base"]).all()
    pipe.load_lora_weights(REPO)
    plain = pictures(pipe, quick=quick)
    differs = np.abs(local["base"].astype(int) - ours).max()
    same = (ours == local["erased"]).mean()
    print(f"{REPO} at {loaded.commit}")
    print(
        f"{same:.1%} of the values are those of the local eraser, which changed some by {differs};"
    )
    print(f"plain diffusers differs by {np.abs(ours.astype(int) - plain).max()} of 255 at most")
    assert (ours == local["erased"]).all()
    assert differs > 50
    assert np.abs(ours.astype(int) - plain).max() <= 8

    there, here = (
        EraserAdapter.from_pretrained(REPO),
        EraserAdapter.from_pretrained(folder / "eraser"),
    )
    assert there.config == here.config
    again = here.save_pretrained(folder / "again" / "eraser")
    for path in (folder / "eraser").iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert [found.repo_id for found in find_erasers(concept="car")] == [REPO]
    with patch.object(RepoCard, "validate"):  # clients before 2.2 ask the public Hub, not this one
        metadata_update(REPO, {"license": "mit"})
    card = ModelCard.load(REPO)
    assert card.data.license == "mit"
    assert len(card.data.widget) == len(PROMPTS)
    assert not constants.HF_HUB_OFFLINE
    print("same")


def settings(hub, home):
    """The environment of a client that talks to this Hub, with a cache of its own."""
    told = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_user",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return {**os.environ, **told}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="solve for the eraser")
    parser.add_argument("--step", choices=["publish", "fetch"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "publish":
        publish(options.folder, quick=options.quick)
    elif options.step == "fetch":
        fetch(options.folder, quick=options.quick)
    else:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from loopback_hub import Hub

        with Hub() as hub, tempfile.TemporaryDirectory() as folder:
            for step in ("publish", "fetch"):
                command = [sys.executable, __file__, "--step", step, "--folder", folder]
                command += ["--quick"] if options.quick else []
                subprocess.run(command, env=settings(hub, f"{folder}/{step}"), check=True)
            print(f"{len(hub.log)} requests; {len(hub.repos[REPO].commits) - 1} commits:")
            for path, content in sorted(hub.files(REPO).items()):
                print(f"  {len(content):>9,} bytes  {path}")


if __name__ == "__main__":
    main()
