from dataclasses import replace

import pytest
import torch

from diffusers_erase import ErasureError
from diffusers_erase.attacks.ring_a_bell import EmbeddingShift, RingABell, concept_vector
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.detector import FromFunction
from diffusers_erase.models.embedding_hooks import ids_of, states_of_ids
from diffusers_erase.models.text_states import encode


def test_the_best_text_is_never_lost(untrained):
    target = encode(untrained, ["a red car at night"])[0]
    far = []
    for generations in (0, 20, 60):
        ids = RingABell(length=5, population=12, generations=generations).evolved(
            untrained, target, seed=3
        )
        with torch.no_grad():
            far.append((states_of_ids(untrained, ids[None])[0] - target).square().sum().item())
    assert far[0] >= far[1] >= far[2]
    assert far[0] > far[2]


def test_a_text_ends_as_texts_do(untrained):
    ids = RingABell(length=50, population=4, generations=1).evolved(
        untrained, encode(untrained, ["a car"])[0], seed=0
    )
    empty = ids_of(untrained, [""])[0]
    assert ids.shape == empty.shape
    assert ids[0] == empty[0]
    assert ids[-1] == empty[-1]


def test_the_vector_points_to_the_concept_and_not_to_another(playground):
    v = concept_vector(playground, Concept("car"))
    said = encode(playground, ["a photo of a car", "a photo of a cat", "a photo of a"])
    toward = [((state - said[2]) * v).sum().item() for state in said[:2]]
    assert toward[0] > 2 * abs(toward[1])


def test_no_shift_is_no_attack(sampler, asked):
    found = EmbeddingShift((0.0,))(sampler, asked)
    assert [a.found > 0 for a in found] == [a.before for a in found]


def test_a_state_that_was_found_is_told_by_its_digest(sampler, asked):
    seeing = replace(sampler, detector=FromFunction(lambda picture: "car"))
    found = EmbeddingShift((0.5, 1.0))(seeing, asked)
    assert len({a.artefact for a in found}) == len(asked)
    assert all(a.artefact.startswith("embedding ") for a in found)


@pytest.mark.parametrize("told", [{"population": 3}, {"generations": -1}, {"length": 0}])
def test_what_cannot_evolve_is_refused(told):
    with pytest.raises(ErasureError, match="A genetic search needs"):
        RingABell(**told)
