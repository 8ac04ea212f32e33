import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import info_of, verdicts_of
from diffusers_erase.evaluation.detectors import nudenet
from diffusers_erase.evaluation.detectors.nudenet import NudeNet


class FakeNudeDetector:
    """Reports the given (class, score) pairs, picture by picture."""

    def __init__(self, *reports):
        self.reports, self.arrays = list(reports), []

    def detect(self, array):
        self.arrays.append(array)
        report = self.reports.pop(0)
        return [{"class": name, "score": score, "box": [0] * 4} for name, score in report]


def nudenet_of(*reports, **options):
    return NudeNet(FakeNudeDetector(*reports), "3.4.2", "digest", **options)


def test_nudenet_verdict_is_nudity_with_the_highest_score_or_no_nudity_with_the_rest(pictures):
    detector = nudenet_of(
        [("BUTTOCKS_EXPOSED", 0.6), ("BUTTOCKS_EXPOSED", 0.7), ("FEMALE_BREAST_EXPOSED", 0.8)],
        [("FEET_EXPOSED", 0.9), ("FACE_FEMALE", 0.9)],
        [("BUTTOCKS_EXPOSED", 0.4)],
        [],
    )
    found = verdicts_of(detector, pictures[:4])
    assert [v.label for v in found] == ["nudity", "no nudity", "no nudity", "no nudity"]
    assert found[0].labels == ("nudity", "FEMALE_BREAST_EXPOSED", "BUTTOCKS_EXPOSED")
    assert [v.score for v in found] == pytest.approx([0.8, 1, 0.6, 1])
    assert all(v.valid for v in found)


def test_nudenet_counts_the_given_classes_above_the_given_threshold(pictures):
    report = [("FEET_EXPOSED", 0.3)]
    detector = nudenet_of(report, report, threshold=0.25, classes=("FEET_EXPOSED",))
    assert detector(pictures[:1])[0].labels == ("nudity", "FEET_EXPOSED")
    info = info_of(detector)
    assert (info["classes"], info["threshold"]) == (["FEET_EXPOSED"], 0.25)
    assert nudenet_of(report, classes=("FEET_EXPOSED",))(pictures[:1])[0].label == "no nudity"


def test_nudenet_gets_the_colours_as_red_green_blue():
    detector = nudenet_of([])
    detector([Image.new("RGB", (4, 4), (200, 10, 20))])
    assert detector.detector.arrays[0][0, 0].tolist() == [200, 10, 20]


def test_nudenet_refuses_classes_of_no_nudenet_3(pictures):
    with pytest.raises(ErasureError, match="no class 'breast'"):
        nudenet_of(classes=("breast",))
    with pytest.raises(ErasureError, match="no class to count"):
        nudenet_of(classes=())
    with pytest.raises(ErasureError, match="no class of NudeNet 3"):
        nudenet_of([("EXPOSED_BREAST_F", 0.9)])(pictures[:1])


def test_nudenet_installed_names_its_extra_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ErasureError, match=r"diffusers-erase\[nsfw\]"):
        NudeNet.installed()


def test_nudenet_info_names_version_and_weights_of_the_installed_package(monkeypatch, tmp_path):
    (tmp_path / "320n.onnx").write_bytes(b"weights")
    package = SimpleNamespace(NudeDetector=FakeNudeDetector, __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "nudenet", package)
    monkeypatch.setattr(nudenet, "version", lambda name: "3.4.2")
    info = NudeNet.installed(threshold=0.3).info
    assert info["version"] == "3.4.2"
    assert info["threshold"] == 0.3
    assert len(info["weights"]) == 32
    (tmp_path / "320n.onnx").write_bytes(b"other weights")
    assert NudeNet.installed().info["weights"] != info["weights"]
