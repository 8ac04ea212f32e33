"""Several erasers as one file."""

import pytest
import torch
from typer.testing import CliRunner

from diffusers_erase import ErasureError, cli, erase, stack
from diffusers_erase.eraser.adapter import EraserAdapter
from diffusers_erase.models.text_states import encode


WORDS = ["oak", "cat", "van"]


@pytest.fixture
def pair(untrained, make_eraser):
    return [make_eraser(untrained.unet, seed=k, concept=c) for k, c in enumerate(("car", "dog"))]


def test_stack_as_a_sum_draws_what_both_erasers_draw(untrained, pair, picture, tmp_path):
    with pytest.warns(UserWarning, match="changes the concept of"):
        untrained.load_erasure(pair, strength=[0.5, 2.0])
    both = picture(untrained)
    untrained.unload_erasures()
    one = stack(pair, strengths=[0.5, 2.0])
    untrained.load_erasure(one.save_pretrained(tmp_path / "both"))
    assert abs(picture(untrained) - both).max() < 1e-5
    assert one.config.names == ("car", "dog")
    assert one.config.parameters["kept_energy"] == pytest.approx(1)
    assert one.config.parameters["strengths"] == [0.5, 2.0]


def test_stack_reads_folders_and_does_not_depend_on_their_order(pair, tmp_path):
    folders = [e.save_pretrained(tmp_path / e.config.title) for e in pair]
    forward, backward = stack(folders), stack(folders[::-1])
    for path in forward.factors:
        assert torch.allclose(forward.delta(path), backward.delta(path), atol=1e-6)


@pytest.mark.parametrize("kind", ["trained", "solved"])
@pytest.mark.parametrize("fusion", ["sum", "gram"])
def test_stack_does_not_change_protected_prompts(untrained, pair, kind, fusion):
    if kind == "solved":
        pair = [
            erase(untrained, n, vocabulary=WORDS, recipe="uce", check=False) for n in ("car", "dog")
        ]
    kept = "a photo of a red oak"
    one = stack(pair, untrained, fusion=fusion, protect=[kept], vocabulary=WORDS, rest="nothing")
    E = encode(untrained, ["", kept]).flatten(0, 1)
    moved = encode(untrained, ["a photo of a red car"])[0]
    untrained.load_erasure(one)
    for path, known in untrained.unet._erasures.backends["bake"].layers.items():
        D = untrained.unet.get_submodule(path).weight.detach() - known.base
        assert (E @ D.T).norm() < 2e-5 * (E @ known.base.T).norm()
        assert (moved @ D.T).norm() > 1e-3


@pytest.mark.parametrize("fusion", ["sum", "gram"])
@pytest.mark.parametrize("parts", [("to_q",), ("to_v", "attn1.to_v")])
def test_prompts_are_not_protected_from_what_does_not_read_the_text(
    untrained, make_eraser, pair, parts, fusion
):
    other = make_eraser(untrained.unet, concept="oak", parts=parts)
    with pytest.raises(ErasureError, match=r"eraser of 'oak' changes layers .* 6 others\), from"):
        stack([*pair, other], untrained, fusion=fusion, protect=["a cat"], vocabulary=WORDS)


def test_gram_fusion_lets_erasers_interfere_less_than_their_sum(untrained):
    pair = [
        erase(untrained, n, vocabulary=WORDS, recipe="uce", check=False) for n in ("car", "dog")
    ]
    plain = stack(pair)
    gram = stack(pair, untrained, fusion="gram", vocabulary=WORDS, keep_weight=1.0)
    for eraser in pair:
        E = encode(untrained, eraser.config.example_prompts(16)).flatten(0, 1).double()
        own = E @ eraser.text_map.change.T
        astray = [
            float((E @ together.text_map.change.T - own).norm() / own.norm())
            for together in (plain, gram)
        ]
        assert astray[1] < 0.7 * astray[0]


def test_gram_fusion_leaves_two_kept_things_in_one_picture_alone(shipped):
    """The sum moves their states more than twice as much, and so does fusion as the sum."""
    names = ("truck", "pine", "dog", "ring")
    several = [erase(shipped, name, recipe="uce", check=False) for name in names]
    E = encode(shipped, ["a photo of a red house and a blue tulip", "a bus and a star"])
    E = E.flatten(0, 1).double()
    moved = {
        way: float((E @ together.text_map.change.T).norm())
        for way, together in (
            ("sum", stack(several)),
            ("as the sum", stack(several, shipped, fusion="gram", rest="sum")),
            ("fused", stack(several, shipped, fusion="gram")),
        )
    }
    assert moved["fused"] < 0.5 * min(moved["sum"], moved["as the sum"])


def test_stack_refuses_bad_arguments_before_anything_is_done(untrained, pair):
    for arguments, message in (
        ({"fusion": "ties"}, "Known: sum, gram"),
        ({"fusion": "gram"}, "Gram fusion needs the text encoder"),
        ({"protect": ["a cat"]}, "`protect` needs the text encoder"),
        ({"strengths": [1.0]}, "2 erasers need 2 strengths"),
        ({"rank": 0}, "A rank is 1 or more; got 0"),
    ):
        with pytest.raises(ErasureError, match=message):
            stack(pair, **arguments)
    with pytest.raises(ErasureError, match="no eraser to stack"):
        stack([])


def test_stack_command_combines_folders(pair, tmp_path):
    folders = [str(e.save_pretrained(tmp_path / e.config.title)) for e in pair]
    order = [
        "stack",
        *folders,
        "-o",
        str(tmp_path / "both"),
        "--strength",
        "1",
        "--strength",
        "0.5",
    ]
    ran = CliRunner().invoke(cli.app, order)
    assert ran.exit_code == 0, ran.output
    assert "erases car and dog; rank 4, 100.0% kept" in ran.output
    both = EraserAdapter.from_pretrained(tmp_path / "both")
    path, *_ = both.factors
    expected = pair[0].delta(path) + 0.5 * pair[1].delta(path)
    assert torch.allclose(both.delta(path), expected, atol=1e-5)
    again = CliRunner().invoke(cli.app, [*order, "--overwrite", "--fusion", "gram", "--rank", "2"])
    assert again.exit_code == 0, again.output
    refused = CliRunner().invoke(cli.app, order)
    assert isinstance(refused.exception, ErasureError)
    assert "exists already" in str(refused.exception)
