import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from diffusers_erase.playground import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    STYLES,
    Judge,
    JudgeVerdict,
    Scene,
    Thing,
    load_judge,
    render,
)
from diffusers_erase.playground.judge import JudgeNetwork, to_tensor


class Says(nn.Module):
    """A network that gives the same answer to every picture."""

    def __init__(self, *, valid=1.0, **objects):
        super().__init__()
        self.logits = {head: torch.zeros(size) for head, size in JudgeNetwork.HEADS.items()}
        self.logits["object"] -= 5
        for name, logit in objects.items():
            self.logits["object"][OBJECTS.index(name)] = logit
        self.logits["style"][STYLES.index("chalk")] = 1
        self.logits["colour"][COLOURS.index("blue")] = 1
        self.logits["background"][BACKGROUNDS.index("snow")] = 1
        self.logits["valid"][0] = valid

    def forward(self, pictures):
        return {head: row.expand(len(pictures), -1) for head, row in self.logits.items()}


@pytest.fixture(scope="module")
def untaught():
    torch.manual_seed(0)
    return Judge(JudgeNetwork())


@pytest.fixture(scope="module")
def pictures():
    scenes = [Scene((Thing(name),), background="field") for name in ("car", "oak", "cat", "star")]
    return np.stack([render(scene, seed) for seed, scene in enumerate(scenes)])


def test_the_network_answers_five_questions_for_every_picture(untaught):
    logits = untaught.network(torch.zeros(3, 3, 64, 64))
    assert {head: tuple(value.shape) for head, value in logits.items()} == {
        "object": (3, len(OBJECTS)),
        "style": (3, len(STYLES)),
        "colour": (3, len(COLOURS)),
        "background": (3, len(BACKGROUNDS)),
        "valid": (3, 1),
    }


def test_a_verdict_speaks_the_words_of_the_world(untaught, pictures):
    verdicts = untaught(pictures)
    assert len(verdicts) == len(pictures)
    for verdict in verdicts:
        assert isinstance(verdict, JudgeVerdict)
        assert verdict.label in OBJECTS
        assert 0 <= verdict.score <= 1
        assert verdict.style in STYLES
        assert verdict.colour in COLOURS
        assert verdict.background in BACKGROUNDS
        assert set(verdict.objects) <= set(OBJECTS)
        assert verdict.valid == bool(verdict.objects)


def test_pictures_arrays_and_tensors_are_judged_alike(untaught, pictures):
    verdicts = untaught(pictures)
    assert untaught([Image.fromarray(picture) for picture in pictures]) == verdicts
    assert untaught(to_tensor(pictures)) == verdicts
    assert untaught(pictures[::-1].copy()) != verdicts


def test_a_judge_draws_no_lots(untaught, pictures):
    assert not untaught.network.training
    torch.manual_seed(0)
    verdicts = untaught(pictures)
    torch.manual_seed(1)
    assert untaught(pictures) == verdicts


@pytest.mark.parametrize(
    "images",
    [
        [Image.new("RGB", (128, 128))],
        np.zeros((2, 32, 32, 3), np.uint8),
        torch.zeros(2, 3, 64, 32),
        torch.zeros(2, 1, 64, 64),
    ],
)
def test_pictures_of_another_size_are_refused(untaught, images):
    with pytest.raises(ValueError, match=r"64 x 64 colour pictures; got .* Resize"):
        untaught(images)


def test_every_object_above_one_half_is_seen_the_most_certain_first(pictures):
    (verdict,) = Judge(Says(car=0.5, oak=2.0, cat=-0.5))(pictures[:1])
    assert verdict.objects == ("oak", "car")
    assert verdict.label == "oak"
    assert verdict.score == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert verdict.valid
    assert (verdict.style, verdict.colour, verdict.background) == ("chalk", "blue", "snow")


def test_a_ruined_picture_shows_nothing_but_keeps_its_label(pictures):
    (verdict,) = Judge(Says(car=0.5, valid=-1.0))(pictures[:1])
    assert (verdict.label, verdict.valid, verdict.objects) == ("car", False, ())


def test_a_picture_without_an_object_is_not_valid(pictures):
    (verdict,) = Judge(Says(car=-0.5, valid=1.0))(pictures[:1])
    assert (verdict.label, verdict.valid, verdict.objects) == ("car", False, ())


def test_many_pictures_are_judged_one_by_one():
    assert len(Judge(Says(car=1.0))(torch.zeros(600, 3, 64, 64))) == 600


def test_a_judge_comes_back_from_its_folder(untaught, pictures, tmp_path):
    weights = untaught.network.state_dict()
    save_file(weights, tmp_path / "judge.safetensors")
    assert load_judge(tmp_path)(pictures) == untaught(pictures)
    half = {name: value.half() for name, value in weights.items()}
    save_file(half, tmp_path / "judge.safetensors")
    judge = load_judge(str(tmp_path))
    assert {p.dtype for p in judge.network.parameters()} == {torch.float32}
    for one, other in zip(judge(pictures), untaught(pictures), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3)


def test_a_folder_without_a_judge_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m diffusers_erase\.playground\.building"):
        load_judge(tmp_path)
