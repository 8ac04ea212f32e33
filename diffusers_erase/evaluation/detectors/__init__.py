"""Detectors, one per file, and the registry by which they are named: `detector_named`."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.detector import Detector
from diffusers_erase.evaluation.detectors.clip_zero_shot import ClipZeroShot
from diffusers_erase.evaluation.detectors.image_classifier import ImageClassifier
from diffusers_erase.evaluation.detectors.nudenet import NudeNet
from diffusers_erase.evaluation.suites import unknown


__all__ = ["DETECTORS", "ClipZeroShot", "ImageClassifier", "MakeDetector", "NudeNet"]
__all__ += ["detector_named", "require_detector"]

MakeDetector = Callable[[str, Sequence[str]], Detector]
"""(model, labels) -> detector: what follows the name's colon, and the labels of the suite."""

DETECTORS: Mapping[str, MakeDetector] = {
    "clip:<model>": ClipZeroShot.from_pretrained,
    "classifier:<model>": lambda model, labels: ImageClassifier.from_pretrained(model),
    "nudenet": lambda model, labels: NudeNet.installed(),
}
"""Name -> maker; a name with a colon takes a Hub id or folder after it."""


def detector_named(
    name: str, labels: Sequence[str], others: Mapping[str, MakeDetector] | None = None
) -> Detector:
    """The detector of that name, such as `nudenet` or `clip:openai/clip-vit-base-patch32`.

    Raises:
        ErasureError: the name is unknown, its model is missing, or the detector cannot be loaded.
    """
    known = {**DETECTORS, **(others or {})}
    return known[require_detector(name, known)](name.partition(":")[2], labels)


def require_detector(name: str, known: Iterable[str]) -> str:
    """The one of the known names that is meant: `clip:<model>` for `clip:openai/...`.

    Raises:
        ErasureError: the name is unknown, or its model is missing.
    """
    kind, _, model = name.partition(":")
    for full in known:
        if full.partition(":")[0] == kind and bool(model) == (":" in full):
            return full
    raise ErasureError(unknown("detector", name, known))
