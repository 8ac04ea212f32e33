"""Every Python snippet of the README and the docs runs, in a folder of its own."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from diffusers_erase.making.checking import Check
from diffusers_erase.models.architectures import text_layers
from diffusers_erase.playground import protocols
from diffusers_erase.training.recipes import REPLACE


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def on_the_playground(code):
    """The snippet on the playground, for models that cannot travel, in few steps and pictures."""
    code = re.sub(r"from diffusers import StableDiffusionPipeline\n", "", code)
    code = re.sub(r"Sampling\(steps=\d+", "Sampling(steps=1", code)
    code = re.sub(r"pictures=\d+", "pictures=1", code)
    return re.sub(r"StableDiffusionPipeline\.from_pretrained\(.*?\)", "load_pipeline()", code)


def few_pictures(*asked, pictures, protocol=protocols.protocol):
    """A protocol with one picture of every group."""
    whole = protocol(*asked, pictures=pictures)
    groups = {name: {**group, "pictures": 1} for name, group in whole["groups"].items()}
    return {**whole, "groups": groups}


def lay_out(code, unet, make_eraser):
    """Folders, files and repositories that a snippet takes for granted."""
    for i, name in enumerate(dict.fromkeys(re.findall(r'load_erasure\("user/erase-(\w+)"', code))):
        eraser = make_eraser(unet, seed=i, concept=f"erase-{name}", scale=0.01)
        eraser.push_to_hub(f"user/erase-{name}")
    for i, name in enumerate(dict.fromkeys(re.findall(r'"erase-(\w+)"', code))):
        eraser = make_eraser(unet, seed=i, concept=name, scale=0.01)
        if "save_pretrained" not in code:
            eraser.save_pretrained(f"erase-{name}")
    for file in re.findall(r'"([\w-]+\.safetensors)"', code):
        eraser = make_eraser(unet, rank=4)
        weights = {path: layer.weight.detach() for path, layer in text_layers(unet).items()}
        save_file({f"{p}.weight": W + eraser.delta(p) for p, W in weights.items()}, file)


@pytest.mark.filterwarnings("ignore:The eraser")  # random ones disturb one another
@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet_runs(code, playground, make_eraser, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = replace(REPLACE, steps=2, sampling_steps=2)
    monkeypatch.setattr("diffusers_erase.making.choosing.default_recipe", lambda *_: quick)
    monkeypatch.setattr(
        "diffusers_erase.making.trying.check_eraser", lambda *_: Check("erased")
    )  # two steps erase nothing
    monkeypatch.setattr("diffusers_erase.evaluation.evidence.DRIFT_PROMPTS", 1)
    monkeypatch.setattr(protocols, "protocol", few_pictures)
    code = on_the_playground(code)
    names = {
        "load_pipeline": lambda: playground,
        "pipe": playground,
        "eraser": make_eraser(playground.unet),
        "picture": Image.new("RGB", (8, 8)),
    }
    lay_out(code, playground.unet, make_eraser)
    exec(compile(code, "snippet", "exec"), names)
    if "save_pretrained" in code:
        assert (tmp_path / "erase-car" / "erasure_config.json").is_file()
        assert (tmp_path / "no-car.png").is_file()
    elif "load_erasure(" in code:
        assert len(playground.list_erasures()) >= 1


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
