import pytest

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation import extras
from diffusers_erase.evaluation.extras import optional


def test_optional_imports_a_package():
    import json

    assert optional("json", "plots") is json


def test_optional_names_the_extra_of_a_missing_package():
    with pytest.raises(ErasureError, match=r"pip install diffusers-erase\[plots\]"):
        optional("no_such_package", "plots")


def test_optional_repeats_why_a_package_is_broken(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(extras, "import_module", broken)
    with pytest.raises(ErasureError, match="nms does not exist"):
        optional("matplotlib", "plots")
