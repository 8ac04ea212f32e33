"""Erasers travel over the Hub's own client and a real server on loopback, whatever goes wrong."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import product

import pytest
import torch
from huggingface_hub import ModelCard, constants, snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from diffusers_erase import cli
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.eraser.config import CONFIG_NAME, ErasedConcept
from diffusers_erase.eraser.lora import Lora
from diffusers_erase.errors import ErasureError
from diffusers_erase.storage.hub import find_erasers
from tests.benchmarks import round_trip
from tests.loopback_hub import Repo


REPO = "user/erase-car"


def same(one, other):
    return (
        one.config == other.config
        and one.factors.keys() == other.factors.keys()
        and all(
            torch.equal(a, b)
            for path in one.factors
            for a, b in zip(one.factors[path], other.factors[path], strict=True)
        )
    )


def test_what_is_pushed_comes_back(hub, untrained, make_eraser):
    eraser = make_eraser(untrained.unet)
    address = eraser.push_to_hub(REPO)
    assert same(EraserAdapter.from_pretrained(REPO), eraser)
    sha = hub.repos[REPO].commits[-1][0]
    assert address == f"{hub.url}/{REPO}/commit/{sha}"
    untrained.load_erasure(REPO)
    loaded = untrained.list_erasures()["car"]
    assert (loaded.source, loaded.commit) == (REPO, sha)


def test_a_name_alone_is_a_repository_of_ones_own(hub, untrained, make_eraser):
    assert f"{hub.url}/{REPO}/commit/" in make_eraser(untrained.unet).push_to_hub("erase-car")
    with pytest.raises(ErasureError, match="'no/such/name' cannot be published"):
        make_eraser(untrained.unet).push_to_hub("no/such/name")
    assert list(hub.repos) == [REPO]


def test_pushed_again_it_is_the_same_commit(hub, untrained, make_eraser):
    eraser = make_eraser(untrained.unet)
    first, again = eraser.push_to_hub(REPO), eraser.push_to_hub(REPO)
    assert first == again
    assert len(hub.repos[REPO].commits) == 2


def test_the_next_version_replaces_what_the_former_one_left(hub, untrained, make_eraser):
    eraser = make_eraser(untrained.unet)
    eraser.push_to_hub(REPO)
    before = hub.repos[REPO].commits[-1][0]
    hub.files(REPO)["notes.md"] = b"by hand"
    other = make_eraser(untrained.unet, seed=1, rank=3)
    other.push_to_hub(REPO, images={"a car": Image.new("RGB", (8, 8))})
    assert {"notes.md", "images/00.png"} <= set(hub.files(REPO))
    hub.files(REPO)["erase-car.safetensors"] = b"its LoRA with other keys"
    other.push_to_hub(REPO)
    assert "erase-car.safetensors" not in hub.files(REPO)
    assert "images/00.png" not in hub.files(REPO)
    assert "notes.md" in hub.files(REPO)
    assert same(EraserAdapter.from_pretrained(REPO), other)
    assert same(EraserAdapter.from_pretrained(REPO, revision=before), eraser)


def test_a_request_changes_nothing_until_it_is_merged(hub, untrained, make_eraser):
    one, two = (make_eraser(untrained.unet, seed=k) for k in (1, 2))
    one.push_to_hub(REPO)
    assert two.push_to_hub(REPO, create_pr=True) == f"{hub.url}/{REPO}/discussions/1"
    assert same(EraserAdapter.from_pretrained(REPO), one)
    assert same(EraserAdapter.from_pretrained(REPO, revision="refs/pr/1"), two)


def test_a_private_one_needs_the_token_and_a_wrong_token_is_named(
    hub, untrained, make_eraser, monkeypatch
):
    eraser = make_eraser(untrained.unet)
    eraser.push_to_hub(REPO, private=True)
    assert same(EraserAdapter.from_pretrained(REPO), eraser)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for call in (
        lambda: EraserAdapter.from_pretrained(REPO, force_download=True),
        lambda: eraser.push_to_hub("user/other"),
        lambda: find_erasers(),
    ):
        with pytest.raises(ErasureError, match="does not know the token; log in"):
            call()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ErasureError, match="does not exist, or is private"):
        EraserAdapter.from_pretrained(REPO, force_download=True)
    assert list(hub.repos) == [REPO]


def test_nothing_of_others_is_overwritten(hub, untrained, make_eraser):
    hub.repos["user/model"] = Repo(commits=[("1" * 40, {"model.safetensors": b"mine"})])
    with pytest.raises(ErasureError, match="holds something else"):
        make_eraser(untrained.unet).push_to_hub("user/model")
    hub.repos["other/erase-car"] = Repo()
    with pytest.raises(ErasureError, match="token does not allow it"):
        make_eraser(untrained.unet).push_to_hub("other/erase-car")
    assert hub.files("user/model") == {"model.safetensors": b"mine"}
    assert hub.files("other/erase-car") == {".gitattributes": b"*.bin\n"}


def test_all_files_are_of_one_commit_whatever_is_pushed_meanwhile(hub, untrained, make_eraser):
    one, two = (make_eraser(untrained.unet, seed=k) for k in (1, 2))
    two = replace(two, config=replace(two.config, recipe="other"))
    two.push_to_hub(REPO)
    later = hub.files(REPO)
    hub.repos.clear()
    one.push_to_hub(REPO)
    hub.after = lambda path: (
        hub.repos[REPO].commits.append(("f" * 40, later)) if CONFIG_NAME in path else None
    )
    assert same(EraserAdapter.from_pretrained(REPO), one)
    assert same(EraserAdapter.from_pretrained(REPO), two)


def test_from_the_cache_it_loads_with_the_server_gone(hub, untrained, make_eraser, monkeypatch):
    eraser = make_eraser(untrained.unet)
    eraser.push_to_hub(REPO)
    EraserAdapter.from_pretrained(REPO)
    asked = len(hub.log)
    assert same(EraserAdapter.from_pretrained(REPO, local_files_only=True), eraser)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    untrained.load_erasure(REPO)
    assert untrained.list_erasures()["car"].commit == hub.repos[REPO].commits[-1][0]
    assert len(hub.log) == asked
    with pytest.raises(ErasureError, match="cannot be reached, and the files are not in the cache"):
        EraserAdapter.from_pretrained("user/unknown")


def test_a_snapshot_is_an_eraser(hub, untrained, make_eraser):
    eraser = make_eraser(untrained.unet)
    eraser.push_to_hub(REPO)
    assert same(EraserAdapter.from_pretrained(snapshot_download(REPO)), eraser)


def test_erasers_are_found_by_model_and_concept(hub, untrained, make_eraser):
    eraser = make_eraser(untrained.unet)
    for name, concepts, base in (
        ("a", ("car",), "user/base"),
        ("b", ("Van Gogh", "Paris, Texas"), "user/base"),
        ("c", ("car",), "user/other"),
    ):
        erased = tuple(map(ErasedConcept, concepts))
        config = replace(eraser.config, concepts=erased, base_model=base)
        replace(eraser, config=config).push_to_hub(f"user/{name}")
    hub.repos["user/model"] = Repo()

    def found(**wanted):
        return [one.repo_id for one in find_erasers(**wanted)]

    assert found() == ["user/a", "user/b", "user/c"]
    assert found(base_model="user/base") == ["user/a", "user/b"]
    assert found(concept="van gogh") == found(concept="paris, texas") == ["user/b"]
    assert found(concept="paris") == found(concept="texas") == []
    assert found(concept="car", base_model="user/other") == ["user/c"]
    assert found(concept="bus") == found(author="nobody") == []
    assert [one.concepts for one in find_erasers()[:2]] == [("car",), ("Van Gogh", "Paris, Texas")]


def test_the_card_is_one_that_the_client_reads(hub, untrained, make_eraser):
    eraser = make_eraser(untrained.unet)
    shares = {"target": {"base": 0.9, "erased": 0.1, "n": 64, "low": -0.9, "high": -0.7}}
    eraser.push_to_hub(REPO, results=shares, images={"a red car": Image.new("RGB", (8, 8))})
    card = ModelCard.load(REPO)
    assert card.data.erasure["concepts"] == ["car"]
    assert card.data.widget == [{"text": "a red car", "output": {"url": "images/00.png"}}]
    assert card.data.eval_results[0].metric_value == 0.1
    assert card.content.count("90.0 % | 10.0 % | -80.0 %") == 1


def ran(*options, env=None):
    done = subprocess.run(
        [sys.executable, round_trip.__file__, *options],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_in_a_fresh_process_it_draws_the_same_pixel_for_pixel(hub, tmp_path):
    """With the client's own settings; plain diffusers and edits of the card as well.

    And saved again there its files have the same bytes.
    """
    round_trip.publish(tmp_path, quick=True)
    env = round_trip.settings(hub, tmp_path / "home")
    assert "\nsame\n" in ran("--step", "fetch", "--folder", str(tmp_path), "--quick", env=env)


@pytest.mark.slow
def test_made_and_pushed_in_one_fresh_process_it_draws_the_same_in_another():
    assert "\nsame\n" in ran("--quick")


# --- on the command line -----------------------------------------------------------------------


def test_the_commands_push_pull_find_tell_and_verify(hub, shipped, make_eraser, tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        if done.exception:
            raise done.exception
        return done.output

    eraser = make_eraser(shipped.unet)
    shares = {"target": {"base": 1.0, "erased": 0.0, "n": 8}}
    red = {"a red car": Image.new("RGB", (8, 8), "red")}
    folder = eraser.save_pretrained(tmp_path / "erase-car", images=red, results=shares)
    assert f"{hub.url}/{REPO}/commit/" in run("push", folder, REPO, "--message", "first")
    assert hub.files(REPO)["images/00.png"] == (folder / "images" / "00.png").read_bytes()
    assert "user/erase-car: erases car from ?; 3 downloads" in run("find", "--concept", "Car")
    assert run("find", "--concept", "bus") == "None.\n"

    before = len(hub.log)
    output = run("info", REPO)
    sha = hub.repos[REPO].commits[-1][0]
    for expected in (
        "erases car",
        "car (object), answered as truck",
        "rank 2",
        sha,
        "lora",
        "erased",
        "F32",
    ):
        assert expected in output
    fetched = [path for method, path in hub.log[before:] if method == "GET" and "/resolve/" in path]
    assert {path.split("/")[-1] for path in fetched} == {CONFIG_NAME, Lora.file}
    assert not list((tmp_path / "cache").rglob(Lora.file))  # a part of it was read, not kept
    assert output.replace(REPO, "x").split("  commit")[0] in run("info", folder).replace(
        str(folder), "x"
    )

    run("pull", REPO, "-o", tmp_path / "again")
    for path, content in hub.files(REPO).items():
        if path != ".gitattributes":
            assert (tmp_path / "again" / path).read_bytes() == content
    with pytest.raises(ErasureError, match="exists already"):
        run("pull", REPO, "-o", tmp_path / "again")
    assert "fits UNet2DConditionModel" in run("verify", folder, "--model", "playground")
    kohya = folder / "erase-car.safetensors"
    tensors = load_file(folder / Lora.file)
    header = {"erasure": json.dumps(eraser.config.to_dict())}
    save_file(tensors, kohya, header)
    assert "erase-car.safetensors changes the same layers by the same" in run("verify", folder)
    key = next(name for name in tensors if name.endswith("up.weight"))
    save_file({**tensors, key: tensors[key] + 1}, kohya, header)
    with pytest.raises(ErasureError, match=r"erase-car\.safetensors changes 1 layers otherwise"):
        run("verify", folder)


def test_only_files_of_an_eraser_are_pulled(hub, untrained, make_eraser, tmp_path):
    make_eraser(untrained.unet).push_to_hub(REPO)
    there = hub.files(REPO)
    for name in ("setup.py", "images/x.svg", "images/../evil.png", "a/b.safetensors", ".env"):
        there[name] = b"evil"
    CliRunner().invoke(cli.app, ["pull", REPO, "-o", str(tmp_path / "new")])
    written = {path.name for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert written == {"new", CONFIG_NAME, Lora.file, "README.md"}


# --- what servers do wrong ---------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch):
    """The client waits as it does, in no time."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *product(("/revision/", "/tree/"), ("cut", "hang up", "429", "503")),
        *product(
            (rf"/resolve/[^/]+/{CONFIG_NAME}", rf"/resolve/[^/]+/{Lora.file}"),
            ("cut", "hang up", "429", "503", "other bytes", "short"),
        ),
    ],
)
def test_a_download_that_fails_once_succeeds_or_is_refused(
    hub, patient, untrained, make_eraser, kind, path
):
    eraser = make_eraser(untrained.unet)
    eraser.push_to_hub(REPO)
    headers = {"Retry_After": 0} if kind == "429" else {}
    hub.fail("GET", path, kind, **headers)
    with suppress(ErasureError):
        assert same(EraserAdapter.from_pretrained(REPO), eraser)
    assert not hub.faults[0].times
    hub.faults.clear()
    assert same(EraserAdapter.from_pretrained(REPO), eraser)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "it cannot be had from the Hub"),
        ("500", r"an error of its own \(500\); try again later"),
        ("429", "too many requests"),
        ("short", "it cannot be had from the Hub"),
        ("other bytes", "other content than the Hub announced, twice; it was not kept"),
    ],
)
def test_a_download_that_always_fails_is_refused_in_words_and_leaves_no_trace(
    hub, patient, untrained, make_eraser, kind, message
):
    eraser = make_eraser(untrained.unet)
    eraser.push_to_hub(REPO)
    before = {k: v.clone() for k, v in untrained.unet.state_dict().items()}
    hub.fail("GET", Lora.file, kind, 1000)
    with pytest.raises(ErasureError, match=message):
        untrained.load_erasure(REPO)
    assert all(torch.equal(v, before[k]) for k, v in untrained.unet.state_dict().items())
    hub.faults.clear()
    assert same(EraserAdapter.from_pretrained(REPO), eraser)


SENT = ("/create", "/preupload", "/batch", "/lfs/", "/commit")
"""What a push asks for with a body; the list of files there are, "/tree", has none."""


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        *product(("hang up",), ("/tree", *SENT)),
        *product(("429", "500", "cut upload"), ("/lfs/", "/commit")),
    ],
)
@pytest.mark.parametrize("times", [1, 1000])
def test_a_push_that_fails_is_whole_or_nothing(
    hub, patient, untrained, make_eraser, kind, path, times
):
    one, two = (make_eraser(untrained.unet, seed=k) for k in (1, 2))
    one.push_to_hub(REPO)
    hub.fail("*", path, kind, times, **({"Retry_After": 0} if kind == "429" else {}))
    try:
        two.push_to_hub(REPO)
        there = two
    except ErasureError:
        there = one
    hub.faults.clear()
    assert same(EraserAdapter.from_pretrained(REPO), there)
    two.push_to_hub(REPO)
    assert same(EraserAdapter.from_pretrained(REPO), two)


def test_what_rots_in_the_cache_is_fetched_again(hub, untrained, make_eraser, tmp_path):
    eraser = make_eraser(untrained.unet)
    eraser.push_to_hub(REPO)
    EraserAdapter.from_pretrained(REPO)
    (cached,) = (tmp_path / "cache").rglob(f"snapshots/*/{Lora.file}")
    blob = bytearray(cached.read_bytes())
    blob[-3] ^= 1
    cached.resolve().write_bytes(blob)
    assert same(EraserAdapter.from_pretrained(REPO), eraser)
