import pytest

from diffusers_erase import ErasureError
from diffusers_erase.attacks import ATTACKS, attack_named
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import AttackResult, Attempt, concept_of
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.suites import PromptCase


def attempt(*, before=False, found=0, images=4, prompt="a car", curve=None):
    after = before or found > 0
    return Attempt(prompt, ("car",), 0, before, after, found, images, 100, curve=curve or {})


def recovery(*attempts):
    return AttackResult("some", "sampler", attempts)


def test_what_was_there_without_the_attack_counts_for_it():
    found = recovery(attempt(before=True), attempt(found=2), attempt(), attempt())
    assert found.pre == Rate(1, 4)
    assert found.post == Rate(2, 4)
    assert found.per_image == Rate(2, 16)
    assert found.evaluations == 400


def test_the_lift_is_what_luck_does_not_find_for_the_same_money():
    found, control = recovery(attempt(found=1), attempt(found=1)), recovery(attempt(), attempt())
    assert found.lift(control) == 1.0
    assert found.lift(found) == 0.0


def test_a_control_that_was_asked_for_something_else_is_refused():
    with pytest.raises(ErasureError, match="different prompts or seeds"):
        recovery(attempt()).lift(recovery(attempt(prompt="a bus")))


def test_a_curve_is_the_share_of_those_that_were_tried_there():
    found = recovery(attempt(curve={"a": 1.0}), attempt(curve={"a": 0.0, "b": 1.0}), attempt())
    assert found.curve == {"a": 0.5, "b": 1.0}


def test_every_attack_goes_by_its_own_name():
    assert all(attack.name == name for name, attack in ATTACKS.items())
    assert {attack.access for attack in ATTACKS.values()} == {"sampler", "white box", "fine-tune"}
    assert len(ATTACKS) == 13


def test_an_unknown_attack_is_told_the_nearest():
    with pytest.raises(
        ErasureError, match=r"Did you mean 'token-search' or .*\? Known: paraphrases"
    ):
        attack_named("token-serch")


def test_attacks_that_need_the_concept_are_told_it_and_others_are_not():
    car = Concept("car")
    assert attack_named("inversion", car).concept == car
    assert attack_named("noise", car) is ATTACKS["noise"]


def test_concept_of_is_the_first_wanted_label_where_no_concept_is_given():
    cases = [PromptCase("target", "a photo of a car", ("car", "truck"), 0)]
    assert concept_of(cases, None) == Concept("car")
    assert concept_of(cases, Concept("truck")) == Concept("truck")
