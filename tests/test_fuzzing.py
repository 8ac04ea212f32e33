"""Erasers from strangers: what was tampered with loads as it says, or is refused in words."""

import pytest

from tests.fuzzing import MEGABYTES, SECONDS, fuzz


@pytest.mark.parametrize("cases", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_every_case_ends_in_what_it_says_or_in_a_refusal(cases, tmp_path):
    report = fuzz(cases, seed=cases, folder=tmp_path)
    assert report.slowest < SECONDS, str(report)
    assert report.megabytes < MEGABYTES, str(report)
    kinds = {what.split(": ")[1] for what in report.outcomes}
    assert kinds == {"refused", "loaded as its files say"}
