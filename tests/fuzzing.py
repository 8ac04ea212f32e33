"""Erasers that somebody has tampered with: each loads as what it says, or is refused in words.

python -m tests.fuzzing --cases 20000        # prints the report
"""

import argparse
import copy
import json
import os
import random
import resource
import shutil
import tempfile
import time
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from diffusers_erase import EraserAdapter, ErasureError
from diffusers_erase.eraser.config import CONFIG_NAME, ErasedConcept, EraserConfig
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.eraser.text_map import TextMap
from diffusers_erase.models.architectures import fingerprint, projections, text_weights
from diffusers_erase.models.model import Model
from diffusers_erase.playground.building import networks
from diffusers_erase.runtime.plugin import (
    list_erasures,
    load_erasure,
    unload_erasure,
    verify_erasures,
)
from tests import zoo


SECONDS = 2.0
"""For one case, at most."""
MEGABYTES = 300
"""Of memory in addition, at most, over all cases."""

NASTY = (
    None, True, -1, 0, 10**30, 1e308, "", "x" * 5000, "../../etc/passwd", "/etc/passwd", "\x00",
    "a\nb", "\x1b[2J", "\u202e", "{}", [], [[[[]]]], {}, {"a": {"b": {"c": []}}}, [2**40, 2**40],
    [-1, 8], [0, 2**63], "F64", "F8_E4M3", "I8", "BOOL",
)  # fmt: skip


def unet():
    """The smallest UNet with text cross-attention."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def pipeline(folder):
    """The smallest Stable Diffusion pipeline, around that UNet."""
    tokenizer = networks.write_tokenizer(folder)
    return StableDiffusionPipeline(
        vae=zoo.vae(),
        text_encoder=zoo.clip(tokenizer, 8, projects=False),
        tokenizer=tokenizer,
        unet=unet().eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def erasers(model):
    """A trained one, one in closed form with its LoRA, and the same one portable."""
    about = fingerprint(model.denoiser)
    about["text"] = {"prompt": "car", "state": model.text_fingerprint("car")}
    car = ErasedConcept(
        "car", synonyms=("auto",), target="bus", choice="trial", scores={"bus": 0.5}, best="lowest"
    )
    shares = {"target": {"base": 0.9, "erased": 0.1, "n": 8}, "regained": 0.5}
    config = EraserConfig((car,), fingerprint=about, rank=2, results=shares, parameters={"seed": 0})
    trained = Lora(
        {
            path: (torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2))
            for path, layer in projections(model.denoiser, ("to_k", "to_v")).items()
        }
    )
    text_map = TextMap(torch.randn(8, 2).double(), torch.randn(8, 2).double())
    copy = Lora(text_map.factors(text_weights(model.denoiser)))
    kinds = ((trained,), (copy, text_map), (text_map,))
    return [EraserAdapter(payloads, config) for payloads in kinds]


# --- what is done to a file ----------------------------------------------------------------------


def flipped(content, chance):
    """Some bytes replaced, most of them where the header is."""
    content = bytearray(content)
    reach = len(content) if chance.random() < 0.5 else min(len(content), 600)
    for _ in range(chance.randint(1, 8)):
        content[chance.randrange(reach)] = chance.randrange(256)
    return bytes(content)


def cut(content, chance):
    """Ended early, or gone on with."""
    if chance.random() < 0.7:
        return content[: chance.randrange(len(content))]
    return content + chance.randbytes(chance.randint(1, 3000))


def spliced(content, chance):
    """A piece of it somewhere else in it."""
    start, size = chance.randrange(len(content)), chance.randint(1, 200)
    at = chance.randrange(len(content))
    return content[:at] + content[start : start + size] + content[at:]


def rewritten(content, chance):
    """JSON, or the header of a safetensors file, with values, names and places changed."""
    if content[:1] == b"{":
        return json.dumps(changed(json.loads(content), chance)).encode()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    found = header.get("__metadata__", {})
    if chance.random() < 0.4 and found:
        key = chance.choice([*found])
        if found[key][:1] == "{":
            found[key] = json.dumps(changed(json.loads(found[key]), chance))
        else:
            found[key] = chance.choice(["[" * 5000, "{", "null", "x" * 10_000, "NaN"])
    else:
        header = changed(header, chance)
    text = json.dumps(header).encode()
    claimed = len(text) if chance.random() < 0.9 else chance.choice([0, 2**62, len(text) - 1])
    return claimed.to_bytes(8, "little") + text + content[8 + size :]


def changed(value, chance):
    """One place of it replaced, removed, renamed, doubled or nested."""
    value = copy.deepcopy(value)
    inside = value
    while chance.random() < 0.7:
        keys = [*inside] if isinstance(inside, dict) else [*range(len(inside))]
        deeper = [k for k in keys if isinstance(inside[k], dict | list) and inside[k]]
        if not deeper:
            break
        inside = inside[chance.choice(deeper)]
    keys = [*inside] if isinstance(inside, dict) else [*range(len(inside))]
    if not keys:
        return chance.choice(NASTY)
    key, how = chance.choice(keys), chance.randrange(5)
    if how == 0:
        del inside[key]
    elif how == 1 and isinstance(inside, dict):
        name = str(chance.choice(NASTY))
        inside[name] = inside.pop(key)
    elif how == 2:
        deep = []
        for _ in range(chance.choice([5, 50, 300])):
            deep = [deep]
        inside[key] = deep
    elif how == 3 and isinstance(inside, dict):
        inside[key] = inside[chance.choice(keys)]
    else:
        inside[key] = chance.choice(NASTY)
    return value


def replaced(path, chance):
    """Something that is no ordinary file in its place."""
    path.unlink()
    kind = chance.randrange(6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    else:
        targets = ("/dev/zero", path.name, "/etc/passwd", "/proc/kcore")
        path.symlink_to(targets[kind - 2])


# --- and what becomes of it ----------------------------------------------------------------------


@dataclass
class Report:
    """Of many cases."""

    cases: int = 0
    outcomes: Counter = field(default_factory=Counter)
    refusals: Counter = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_case: str = ""
    megabytes: float = 0.0

    def __str__(self):
        rows = [f"{self.cases:,} cases"]
        rows += [f"  {n:>7,}  {what}" for what, n in sorted(self.outcomes.items())]
        rows += [f"slowest: {self.slowest:.3f} s ({self.slowest_case})"]
        rows += [f"memory in addition: {self.megabytes:.0f} MB", "refusals, the most frequent:"]
        rows += [f"  {n:>7,}  {what}" for what, n in self.refusals.most_common(25)]
        return "\n".join(rows)


def decoded(path):
    """Key -> numbers of a safetensors file, read without the library."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    kinds = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
    tensors = {}
    for key, place in header.items():
        if place["dtype"] in kinds:
            first, last = place["data_offsets"]
            numbers = np.frombuffer(
                content[8 + size + first : 8 + size + last], kinds[place["dtype"]]
            )
            tensors[key] = numbers.reshape(place["shape"])
    return tensors


def as_its_files_say(eraser, folder):
    """Whether what was loaded is what stands in the files."""
    if eraser.factors:
        found = decoded(folder / Lora.file)
        for path, (A, _) in eraser.factors.items():
            ours = f"lora_unet_{path.replace('.', '_')}.lora_down.weight"
            keys = [key for key in found if key.endswith((f"{path}.lora_A.weight", ours))]
            if not any(np.array_equal(found[key].astype(np.float32), A.numpy()) for key in keys):
                return False
    if eraser.text_map is not None:
        found = decoded(folder / TextMap.file)
        return np.array_equal(found["U"].astype(np.float64), eraser.text_map.U.numpy())
    return bool(eraser.factors) or eraser.text_map is not None


def one_case(chance, whole, spoilt, pipe, before):
    """What was done, and what became of it."""
    source = chance.choice(whole)
    shutil.rmtree(spoilt, ignore_errors=True)
    shutil.copytree(source, spoilt)
    names = (CONFIG_NAME, Lora.file, TextMap.file)
    path = chance.choice([spoilt / name for name in names if (spoilt / name).exists()])
    ways = (flipped, cut, spliced, rewritten)
    way = chance.choices((*ways, replaced), (6, 2, 2, 8, 1))[0]
    if way is replaced:
        replaced(path, chance)
    else:
        path.write_bytes(way(path.read_bytes(), chance))
    if chance.random() < 0.1 and path.name != CONFIG_NAME:
        (spoilt / CONFIG_NAME).unlink()
    done = f"{way.__name__} {path.name}"
    if chance.random() < 0.1 and path.is_file():
        spoilt = path
    try:
        load_erasure(pipe, spoilt, "spoilt")
    except ErasureError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert list(list_erasures(pipe)) == ["whole"], done
        assert refusal.isprintable(), done
        return done, "refused", refusal
    list_erasures(pipe)
    assert all(share == share for share in verify_erasures(pipe).values()), done
    loaded = pipe.unet._erasures.loaded["spoilt"].adapter
    right = spoilt.is_file() or as_its_files_say(loaded, spoilt)
    unload_erasure(pipe, "spoilt")
    assert all(torch.equal(w, before[k]) for k, w in pipe.unet.state_dict().items()), done
    assert right, done
    with suppress(ErasureError):  # nested deeper than a config may be, once there is a card
        loaded.save_pretrained(spoilt.parent / "again", overwrite=True)
    return done, "loaded as its files say", ""


def fuzz(cases, seed, folder):
    """Tamper with erasers so many times, and load them.

    Raises:
        AssertionError: one was neither refused nor what its files say, or the model was changed.
    """
    chance, pipe = random.Random(seed), pipeline(folder / "tokenizer")
    own = erasers(Model.of(pipe))
    whole = [eraser.save_pretrained(folder / f"whole{k}") for k, eraser in enumerate(own)]
    load_erasure(pipe, own[0], "whole")
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    report = Report(cases)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(cases):
            started = time.perf_counter()
            done, outcome, why = one_case(chance, whole, folder / "spoilt", pipe, before)
            seconds = time.perf_counter() - started
            if seconds > report.slowest:
                report.slowest, report.slowest_case = seconds, done
            report.outcomes[f"{done}: {outcome}"] += 1
            report.refusals[_shape_of(why)] += bool(why)
    report.megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    return report


def _shape_of(why):
    """A refusal without the path and the value in it."""
    words = why.replace("\n", " ").split("'")
    return "…".join(words[::2])[:110]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(fuzz(options.cases, options.seed, Path(folder)))


if __name__ == "__main__":
    main()
