import sys

import pytest

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import Detection
from diffusers_erase.evaluation.detectors import (
    DETECTORS,
    ClipZeroShot,
    ImageClassifier,
    detector_named,
)


def test_detector_named_makes_every_detector_of_the_registry(clip, classifier, monkeypatch):
    made = detector_named(f"clip:{clip}", ["cat", "dog"])
    assert isinstance(made, ClipZeroShot)
    assert made.labels == ("cat", "dog")
    assert isinstance(detector_named(f"classifier:{classifier}", []), ImageClassifier)
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ErasureError, match=r"diffusers-erase\[nsfw\]"):
        detector_named("nudenet", [])
    assert set(DETECTORS) == {"clip:<model>", "classifier:<model>", "nudenet"}


def test_detector_named_takes_more_detectors_by_name():
    def jury(pictures):
        return [Detection("cat", 1.0) for _ in pictures]

    assert detector_named("jury", ["cat"], {"jury": lambda model, labels: jury}) is jury


@pytest.mark.parametrize("name", ["clip", "clip:", "nudenet:something", "jury", ""])
def test_detector_named_refuses_unknown_names_and_missing_models(name):
    with pytest.raises(ErasureError, match=r"No detector .* Known: clip:<model>, .*nudenet"):
        detector_named(name, ["cat", "dog"])
