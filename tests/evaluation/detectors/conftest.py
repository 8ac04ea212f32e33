import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from diffusers_erase.playground.building import networks


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SIZE = {"height": 32, "width": 32}
CLASSES = [
    "tench, Tinca tinca",
    "sax, saxophone",
    "crane",
    "crane",
    "maillot",
    "maillot, tank suit",
    "golf ball",
]


@pytest.fixture
def pictures():
    """Five pictures of noise."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8)) for _ in range(5)]


@pytest.fixture
def odd_pictures():
    """A grey picture and a transparent one."""
    return [Image.new("L", (40, 40), 90), Image.new("RGBA", (30, 40), (1, 2, 3, 4))]


def write_pair(folder, kind):
    """An untrained CLIP or SigLIP with its tokenizer and image processor."""
    tokenizer = networks.write_tokenizer(folder / "words")
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos")}
    text = {**SMALL, **ends, "pad_token_id": tokenizer.pad_token_id}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        made = transformers.CLIPModel(config)
        processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE)
    else:
        config = transformers.SiglipConfig(
            text_config={**text, "projection_size": 32}, vision_config=vision
        )
        made = transformers.SiglipModel(config)
        torch.nn.init.normal_(made.logit_bias)
        processor = transformers.SiglipImageProcessorPil(size=SIZE)
    torch.nn.init.constant_(made.logit_scale, 3.0)
    for part in (made, processor, tokenizer):
        part.save_pretrained(folder / kind)
    return folder / kind


@pytest.fixture(scope="session", params=["clip", "siglip"])
def pair(request, tmp_path_factory):
    """The folder of a CLIP, and of a SigLIP."""
    return write_pair(tmp_path_factory.mktemp("pair"), request.param)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """The folder of a CLIP."""
    return write_pair(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="session")
def write_classifier():
    """Write an untrained image classifier of `CLASSES` into a folder."""

    def write(folder, **config):
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            **SMALL, image_size=32, patch_size=16, id2label=dict(enumerate(CLASSES)), **config
        )
        made = transformers.ViTForImageClassification(config)
        torch.nn.init.normal_(made.classifier.weight)
        made.save_pretrained(folder)
        transformers.ViTImageProcessorPil(size=SIZE).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def classifier(write_classifier, tmp_path_factory):
    """The folder of an image classifier."""
    return write_classifier(tmp_path_factory.mktemp("vit"))
