import subprocess
import sys

import pytest
from diffusers import DiffusionPipeline, StableDiffusionPipeline

import diffusers_erase
from diffusers_erase import binding


HEAVY = (
    "PIL",
    "accelerate",
    "datasets",
    "diffusers",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "peft",
    "safetensors",
    "torch",
    "torchvision",
    "transformers",
)


def in_a_new_process(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_pipelines_have_the_family_of_methods():
    for method in binding.METHODS:
        assert callable(getattr(StableDiffusionPipeline, method))


def test_importing_is_light():
    heavy = in_a_new_process(
        f"import sys, diffusers_erase; print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert heavy == "[]"


def test_help_is_light():
    heavy = in_a_new_process(
        "import sys; from diffusers_erase.cli import main\n"
        "sys.argv = ['diffusers-erase', '--help']\n"
        "try:\n    main()\n"
        f"finally:\n    print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert "generate" in heavy
    assert heavy.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "order",
    [
        "import diffusers_erase; from diffusers import StableDiffusionPipeline as P",
        pytest.param(  # the order of these tests, in `test_pipelines_have_the_family_of_methods`
            "from diffusers import StableDiffusionPipeline as P; import diffusers_erase",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_install_does_not_depend_on_the_order_of_imports(order):
    assert in_a_new_process(f"{order}; print(P.load_erasure.__name__)") == "load_erasure"


def test_installing_twice_is_installing_once_and_uninstalling_leaves_nothing():
    before = DiffusionPipeline.load_erasure
    diffusers_erase.install()
    assert DiffusionPipeline.load_erasure is before
    try:
        diffusers_erase.uninstall()
        assert not any(hasattr(DiffusionPipeline, method) for method in binding.METHODS)
    finally:
        diffusers_erase.install()
    assert hasattr(DiffusionPipeline, "load_erasure")


def test_install_never_replaces_a_method_of_the_pipeline(monkeypatch):
    diffusers_erase.uninstall()
    try:
        monkeypatch.setattr(DiffusionPipeline, "load_erasure", lambda self: "theirs", raising=False)
        with pytest.warns(UserWarning, match="has a method 'load_erasure' of its own"):
            diffusers_erase.install()
        assert DiffusionPipeline.load_erasure(None) == "theirs"
        assert callable(DiffusionPipeline.unload_erasure)
    finally:
        monkeypatch.undo()
        diffusers_erase.uninstall()
        diffusers_erase.install()


def test_every_public_name_is_there():
    for name in diffusers_erase.__all__:
        assert getattr(diffusers_erase, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'eraze'"):
        diffusers_erase.eraze  # noqa: B018
