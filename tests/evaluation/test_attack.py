import pytest

from diffusers_erase import ErasureError
from diffusers_erase.concepts import Concept
from diffusers_erase.evaluation.attack import AttackResult, Attempt, concept_of
from diffusers_erase.evaluation.metrics import Rate
from diffusers_erase.evaluation.suites import PromptCase


def attempt(*, before=False, found=0, images=4, prompt="a car", curve=None):
    after = before or found > 0
    return Attempt(prompt, ("car",), 0, before, after, found, images, 100, curve=curve or {})


def result_of(*attempts):
    return AttackResult("some", "sampler", attempts)


def test_attack_result_post_counts_prompts_shown_without_the_attack():
    found = result_of(attempt(before=True), attempt(found=2), attempt(), attempt())
    assert found.pre == Rate(1, 4)
    assert found.post == Rate(2, 4)
    assert found.per_image == Rate(2, 16)
    assert found.evaluations == 400


def test_attack_result_reached_is_the_first_setting_with_that_share_and_no_control():
    curve = {"0 steps": 0.0, "5 steps, no eraser": 1.0, "5 steps": 1.0, "10 steps": 1.0}
    found = result_of(attempt(curve=curve), attempt(curve={**curve, "5 steps": 0.0}))
    assert found.reached() == found.reached(0.5) == "5 steps"
    assert found.reached(0.6) == "10 steps"
    assert found.reached(0.0) == "0 steps"
    assert result_of(attempt(curve={"0 steps": 0.0})).reached() is None
    assert result_of(attempt()).reached() is None


def test_attack_result_lift_is_the_difference_to_the_control():
    found, control = result_of(attempt(found=1), attempt(found=1)), result_of(attempt(), attempt())
    assert found.lift(control) == 1.0
    assert found.lift(found) == 0.0


def test_attack_result_lift_refuses_a_control_on_other_prompts():
    with pytest.raises(ErasureError, match="different prompts or seeds"):
        result_of(attempt()).lift(result_of(attempt(prompt="a bus")))


def test_attack_result_curve_is_the_share_of_the_prompts_tried_with_the_setting():
    found = result_of(attempt(curve={"a": 1.0}), attempt(curve={"a": 0.0, "b": 1.0}), attempt())
    assert found.curve == {"a": 0.5, "b": 1.0}


def test_concept_of_is_the_first_wanted_label_where_no_concept_is_given():
    cases = [PromptCase("target", "a photo of a car", ("car", "truck"), 0)]
    assert concept_of(cases, None) == Concept("car")
    assert concept_of(cases, Concept("truck")) == Concept("truck")
