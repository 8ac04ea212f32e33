import multiprocessing.dummy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusers_erase.playground import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    STYLES,
    Scene,
    Thing,
    captions,
    render,
    sample_scene,
)
from diffusers_erase.playground.building import corpus
from diffusers_erase.playground.building.corpus import ABSENT, Corpus, label, make_corpus
from diffusers_erase.playground.judge import to_tensor


COUNT = 300
"""More than one helping of work, so that both workers get some."""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A corpus made by two threads, which have the libraries imported already."""
    with pytest.MonkeyPatch.context() as patch:
        threads = SimpleNamespace(get_context=lambda _: multiprocessing.dummy)
        patch.setattr(corpus, "multiprocessing", threads)
        return make_corpus(tmp_path_factory.mktemp("world") / "corpus", COUNT, processes=2)


@pytest.mark.slow
def test_processes_make_the_corpus_that_threads_make(small, tmp_path):
    other = make_corpus(tmp_path / "corpus", COUNT, processes=2)
    for file in small.folder.iterdir():
        assert (other.folder / file.name).read_bytes() == file.read_bytes()


def test_a_corpus_has_one_row_a_picture(small):
    assert small.pictures.shape == (COUNT, 64, 64, 3)
    assert small.pictures.dtype == np.uint8
    assert small.labels.shape == (COUNT, 5)
    assert len(small.captions) == COUNT
    assert all(len(four) == 4 for four in small.captions)


def test_every_row_is_the_scene_of_its_index(small):
    for index in range(COUNT):
        scene = sample_scene(random.Random(index))
        assert tuple(small.labels[index].tolist()) == label(scene)
        assert small.captions[index] == captions(scene, seed=index)
    for index in (0, 17, 255, 256, COUNT - 1):
        scene = sample_scene(random.Random(index))
        assert np.array_equal(small.pictures[index], render(scene, index))
        assert not np.array_equal(small.pictures[index], render(scene, index + 1))


def test_labels_name_what_is_there():
    two = Scene((Thing("dog", "blue"), Thing("circle", "pink")), "chalk", "snow")
    first, second, colour, style, background = label(two)
    assert (OBJECTS[first], OBJECTS[second]) == ("dog", "circle")
    assert colour == ABSENT
    assert (STYLES[style], BACKGROUNDS[background]) == ("chalk", "snow")
    same = Scene((Thing("dog", "blue"), Thing("circle", "blue")))
    assert COLOURS[label(same)[2]] == "blue"
    alone = label(Scene((Thing("dog", "blue"),)))
    assert alone[1] == ABSENT
    assert COLOURS[alone[2]] == "blue"


def test_a_corpus_is_made_once(small):
    def state():
        return {file.name: file.stat().st_mtime_ns for file in small.folder.iterdir()}

    before = state()
    again = make_corpus(small.folder, COUNT + 1, processes=2)
    assert state() == before
    assert set(before) == {"pictures.npy", "labels.npy", "captions.json"}
    assert again == small


def test_some_pictures_are_held_out(small, monkeypatch):
    monkeypatch.setattr(corpus, "HELD_OUT", 40)
    assert small.train == COUNT - 40
    monkeypatch.setattr(corpus, "HELD_OUT", 0)
    assert small.train == COUNT


def test_bytes_become_numbers_around_zero():
    levels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    assert to_tensor(levels).flatten().tolist() == pytest.approx([-1, -0.6, 1])
    assert to_tensor(np.zeros((2, 5, 7, 3), np.uint8)).shape == (2, 3, 5, 7)
    assert to_tensor(levels).dtype == torch.float32


def test_a_rendered_picture_can_be_taken_as_it_is():
    picture = render(Scene((Thing("car"),)), 0)
    assert to_tensor(picture[None]).shape == (1, 3, 64, 64)


def test_batches_are_the_pictures_asked_for(small):
    batch = small.batch(torch.tensor([3, 1, 3]))
    assert torch.equal(batch, to_tensor(small.pictures[[3, 1, 3]]))
    assert torch.equal(batch[0], batch[2])
    assert not torch.equal(batch[0], batch[1])
    assert -1 <= batch.min() < 0 < batch.max() <= 1


def test_a_corpus_is_read_from_its_folder(small):
    other = Corpus(small.folder)
    assert torch.equal(other.labels, small.labels)
    assert np.array_equal(other.pictures, small.pictures)
