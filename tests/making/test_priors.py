"""Statistics of a text encoder as files: written, read, refused, found and shared."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from diffusers_erase import ErasureError, TextPrior, cli, erase
from diffusers_erase.eraser.safetensors_io import serialized
from diffusers_erase.making.priors import PATTERN
from diffusers_erase.models.encoder_fingerprint import EncoderFingerprint
from diffusers_erase.models.model import Model
from diffusers_erase.storage.tensor_cache import digest
from diffusers_erase.training.recipes import RECIPES
from tests.loopback_hub import Repo


REPO = "user/prior"


@pytest.fixture(scope="module")
def prior(shipped):
    return TextPrior.of(shipped)


@pytest.fixture
def file(prior, tmp_path):
    return prior.save(tmp_path / "prior")


def solved(pipe, concept="car", **options):
    return erase(pipe, concept, recipe="closed-form", check=False, **options)


def same(one, other):
    return torch.equal(one.text_map.change, other.text_map.change)


@pytest.fixture
def encoded(playground):
    """The number of prompts in each call of the playground's text encoder."""
    calls = []

    def count(_, given, named):
        calls.append(len(given[0] if given else named["input_ids"]))

    handle = playground.text_encoder.register_forward_pre_hook(count, with_kwargs=True)
    yield calls
    handle.remove()


def changed(path, tensors=None, **about):
    """Write the file again with other tensors and entries of its header."""
    with safe_open(path, "pt") as found:
        header = json.loads(found.metadata()["prior"])
    content = {k: x.clone() for k, x in load_file(path).items()} | (tensors or {})
    path.write_bytes(serialized(content, {"prior": json.dumps(header | about)}))


def test_what_is_saved_is_read_again(playground, prior, file):
    found = TextPrior.from_pretrained(playground, file)
    assert found.content == prior.content == file.read_bytes()
    assert found.source == file.name == prior.name
    assert torch.equal(found.statistics.grams, prior.statistics.grams)
    assert found.encoder == prior.encoder
    assert TextPrior.from_pretrained(playground, file.parent).content == prior.content


@pytest.mark.parametrize("concept", ["car", "red", "red neon"])
def test_erase_with_a_prior_makes_the_same_eraser(playground, prior, file, concept):
    found, alone = solved(playground, concept, prior=file), solved(playground, concept)
    assert same(found, alone)
    assert found.config.concepts == alone.config.concepts
    parameters = found.config.parameters
    assert parameters["prior"] == file.name
    assert alone.config.parameters["prior"] == "computed"
    assert parameters["general_prompts"] == alone.config.parameters["general_prompts"]


def test_rounding_the_statistics_hardly_moves_the_map(playground, prior, monkeypatch):
    alone = solved(playground)
    monkeypatch.setattr("diffusers_erase.editing.own_prompts.packed", lambda G: G[_lower(G)])
    monkeypatch.setattr(torch.Tensor, "half", lambda x: x)
    exact = solved(playground)
    moved = (alone.text_map.change - exact.text_map.change).norm()
    assert 0 < moved < 1e-3 * exact.text_map.change.norm()


def _lower(G):
    return torch.ones_like(G, dtype=torch.bool).tril()


def test_erase_with_a_prior_encodes_few_prompts(playground, encoded, tmp_path, monkeypatch):
    for name in ("models.model.LONG_TEXT", "editing.edit.MANY", "editing.shortlist.MANY"):
        monkeypatch.setattr(f"diffusers_erase.{name}", 0)  # as with an encoder of real size
    cold = solved(playground)
    assert sum(encoded) > 600
    file = TextPrior.of(playground).save(tmp_path)
    encoded.clear()
    assert same(cold, solved(playground, prior=file))
    assert sum(encoded) < 300
    encoded.clear()
    TextPrior.from_pretrained(playground, file)
    assert sum(encoded) == 1


def test_erase_finds_statistics_in_its_work_folder_for_every_concept(
    playground, file, tmp_path, capsys
):
    work = tmp_path / "work"
    first = solved(playground, work=work)
    (kept,) = work.glob(PATTERN)
    assert kept.name == file.name
    assert "Encoding general prompts" in capsys.readouterr().err
    touched = kept.stat().st_mtime_ns
    again, other = solved(playground, work=work), solved(playground, "red", work=work)
    assert same(first, again)
    assert again.config.parameters["prior"] == other.config.parameters["prior"] == kept.name
    assert kept.stat().st_mtime_ns == touched
    line = f"The statistics of 394 general prompts are from {kept.name}."
    assert capsys.readouterr().err.count(line) == 2


def test_statistics_of_another_encoder_in_the_work_folder_are_left_alone(
    untrained, playground, file
):
    eraser = solved(untrained, work=file.parent)
    assert eraser.config.parameters["prior"] == "computed"
    assert len(list(file.parent.glob(PATTERN))) == 2
    assert solved(playground, work=file.parent).config.parameters["prior"] == file.name


def refusing(pipe, source, message, **options):
    def run(*_, **__):
        raise AssertionError("it began to work")

    pipe.unet.forward = run
    with pytest.raises(ErasureError, match=message):
        solved(pipe, prior=source, **options)


def test_a_prior_of_another_text_encoder_is_refused(playground, untrained, file):
    sentence = "'diffusers_erase.playground'.*has other weights; make them anew .*leave out `prior`"
    refusing(untrained, file, sentence)
    moved = copy.deepcopy(playground.text_encoder)
    next(w for name, w in moved.named_parameters() if "fc1.weight" in name).data *= 1.01
    playground.text_encoder = moved
    refusing(playground, file.parent, "has other weights")


def test_half_precision_is_the_same_text_encoder(playground, prior, file):
    for dtype in (torch.float16, torch.bfloat16):
        playground.text_encoder = copy.deepcopy(playground.text_encoder).to(dtype)
        assert TextPrior.from_pretrained(playground, file).encoder == prior.encoder
        own = EncoderFingerprint.of(Model.of(playground))
        assert not own.difference(prior.encoder)
        assert own != prior.encoder


def test_tokenizer_length_and_way_of_reading_count_too(prior):
    own = prior.encoder
    assert not own.difference(own)
    turned = tuple(-x for x in own.empty)
    for changes, message in (
        ({"tokenizers": "x"}, "tokenizer with other words"),
        ({"states": (77, 128)}, "has 77 text states of width 128"),
        ({"empty": turned}, "reads prompts in another way"),
    ):
        assert message in own.difference(replace(own, **changes))


@pytest.mark.parametrize(
    "about",
    [
        {"words": ["car", "van"], "prompts": 10},
        {"settings": {"templates": ["{}"], "ending": 2}},
    ],
)
def test_a_prior_of_other_prompts_is_refused(playground, prior, file, about):
    grams, endings = prior.statistics.grams, prior.statistics.endings
    tensors = {"grams": grams[: len(about.get("settings", {"templates": grams})["templates"])]}
    tensors["endings"] = endings[: about.get("prompts", len(endings))].clone()
    changed(file, tensors, **about, digest=digest(*tensors.values()))
    refusing(playground, file, "other prompts than this version takes")


def test_damaged_files_are_refused(playground, file, tmp_path):
    content = file.read_bytes()
    for size in (0, 7, 1000, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        refusing(playground, file, "no readable safetensors file.*make it anew")
    with pytest.raises(ErasureError, match="no readable safetensors file"):
        solved(playground, work=file.parent)
    file.write_bytes(content[:-3] + b"\0\1\2")
    refusing(playground, file, "not those that were written. Fetch it again")
    file.write_bytes(serialized({"x": torch.zeros(2)}, {}))
    refusing(playground, file, "cannot be read as statistics of a text encoder: it has no 'prior'")
    for about, message in (
        ({"format": "2.0"}, "its format is 2.0"),
        ({"encoder": {}}, "it has no 'states'"),
        ({"versions": 3}, "no attribute"),
        ({"prompts": 10**9}, "`endings` is"),
    ):
        file.write_bytes(content)
        changed(file, **about)
        refusing(playground, file, message)
    refusing(playground, tmp_path, "holds no statistics of a text encoder")


def test_recipes_that_keep_no_general_prompts_refuse_a_prior(playground, file):
    for recipe in ("esd", "uce"):
        with pytest.raises(ErasureError, match=f"'{recipe}' keeps no general prompts here"):
            erase(playground, "car", vocabulary=["van", "oak"], recipe=recipe, prior=file)


def test_training_begins_with_statistics_of_a_file(playground, untrained, file, encoded):
    short = replace(RECIPES["surgical-age"], steps=1, sampling_steps=2, trajectories=2, pool=2)
    options = {"target": "van", "recipe": short, "check": False, "progress": False}
    alone = erase(playground, "car", **options)
    cold, encoded[:] = sum(encoded), []
    found = erase(playground, "car", **options, prior=file)
    assert sum(encoded) < cold - 350
    assert found.config.parameters["prior"] == file.name
    for path, (A, B) in alone.factors.items():
        assert torch.equal(found.factors[path][0], A)
        assert torch.equal(found.factors[path][1], B)
    with pytest.raises(ErasureError, match="has other weights"):
        erase(untrained, "car", **options, prior=file)


def test_a_pushed_prior_is_found_by_its_id(playground, untrained, prior, hub):
    address = prior.push_to_hub(REPO)
    assert prior.push_to_hub(REPO) == address  # no second commit
    commit = hub.repos[REPO].commits[-1][0]
    assert set(hub.files(REPO)) == {".gitattributes", "README.md", prior.name}
    card = hub.files(REPO)["README.md"].decode()
    assert "diffusers-erase-prior" in card
    assert f'prior="{REPO}"' in card
    eraser = solved(playground, prior=REPO)
    assert eraser.config.parameters["prior"] == f"{REPO} ({commit[:12]})"
    hub.repos["user/model"] = Repo(commits=[("1" * 40, {"model.safetensors": b"mine"})])
    with pytest.raises(ErasureError, match="holds something else"):
        prior.push_to_hub("user/model")
    refusing(playground, "user/model", "holds no statistics")


def test_a_prior_takes_the_place_of_another_one_on_the_hub(playground, untrained, prior, hub):
    prior.push_to_hub(REPO)
    refusing(untrained, REPO, "has other weights")
    TextPrior.of(untrained).push_to_hub(REPO)
    assert len([name for name in hub.files(REPO) if name.endswith(".safetensors")]) == 1
    refusing(playground, REPO, "has other weights")


def command(*options):
    found = CliRunner().invoke(cli.app, [str(option) for option in options])
    assert found.exit_code == 0, found.output
    return found.output


def test_the_command_writes_and_pushes_what_edit_takes(hub, prior, tmp_path):
    said = command("prior", "--out", tmp_path / "out", "--push", REPO)
    assert f"Pushed: {hub.url}/{REPO}" in said
    assert (tmp_path / "out" / prior.name).read_bytes() == prior.content
    said = command("edit", "--concept=car", "--no-check", "-o", tmp_path / "car", "--prior", REPO)
    assert f"394 general prompts are from {REPO} (" in said


def test_edit_finds_by_itself_what_the_command_leaves(prior, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    command("prior")
    said = command("edit", "--concept=car", "--no-check", "-o", tmp_path / "car")
    assert f"394 general prompts are from {prior.name}." in said
