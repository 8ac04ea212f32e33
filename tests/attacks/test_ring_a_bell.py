from dataclasses import replace

import pytest
import torch

from diffusers_erase import ErasureError
from diffusers_erase.attacks.ring_a_bell import EmbeddingShift, RingABell, concept_vector
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.detector import FromFunction
from diffusers_erase.models.embedding_hooks import states_of_ids, token_ids
from diffusers_erase.models.text_states import encode


def test_ring_a_bell_search_never_loses_its_best_text(untrained):
    target = encode(untrained, ["a red car at night"])[0]
    distances = []
    for generations in (0, 20, 60):
        attack = RingABell(length=5, population=12, generations=generations)
        ids = attack.search(untrained, target, seed=3)
        with torch.no_grad():
            states = states_of_ids(untrained, ids[None])[0]
        distances.append((states - target).square().sum().item())
    assert distances[0] > distances[1] > distances[2]


def test_ring_a_bell_search_keeps_the_first_and_last_token(untrained):
    ids = RingABell(length=50, population=4, generations=1).search(
        untrained, encode(untrained, ["a car"])[0], seed=0
    )
    empty = token_ids(untrained, [""])[0]
    assert ids.shape == empty.shape
    assert ids[0] == empty[0]
    assert ids[-1] == empty[-1]


def test_concept_vector_has_the_direction_of_the_concept_and_not_of_another(playground):
    v = concept_vector(playground, Concept("car"))
    car, cat, nothing = encode(playground, ["a photo of a car", "a photo of a cat", "a photo of a"])
    towards_car, towards_cat = (((state - nothing) * v).sum().item() for state in (car, cat))
    assert towards_car > 2 * abs(towards_cat)


def test_embedding_shift_by_zero_is_the_picture_without_the_attack(sampler, cases):
    found = EmbeddingShift((0.0,))(sampler, cases)
    assert [a.found > 0 for a in found] == [a.before for a in found]
    assert len({a.before for a in found}) == 2  # the detector finds a car in some


def test_embedding_shift_records_the_digest_of_the_states_it_found(sampler, cases):
    always = replace(sampler, detector=FromFunction(lambda picture: "car"))
    found = EmbeddingShift((0.5, 1.0))(always, cases)
    assert len({a.artefact for a in found}) == len(cases)
    assert all(a.artefact.startswith("embedding ") for a in found)


@pytest.mark.parametrize("options", [{"population": 3}, {"generations": -1}, {"length": 0}])
def test_ring_a_bell_refuses_too_small_a_search(options):
    with pytest.raises(ErasureError, match="A genetic search needs"):
        RingABell(**options)
