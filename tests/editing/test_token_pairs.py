from dataclasses import replace

import pytest
import torch

from diffusers_erase.editing import token_pairs
from diffusers_erase.editing.alignment import aligned
from diffusers_erase.editing.texts import texts_of
from diffusers_erase.editing.token_pairs import Rows, paired_states, without_shared_part
from diffusers_erase.errors import ErasureError
from diffusers_erase.linalg.shell import shell
from diffusers_erase.models import model


START, END = 90, 91


def tokens(*words):
    return [START, *words, END]


def test_aligned_pairs_the_same_words():
    found = aligned(tokens(1, 2, 3, 4), tokens(1, 2, 7, 8, 4), 10)
    assert found.before == [(0, 0), (1, 1), (2, 2)]
    assert found.own == [(3, 4)]
    assert found.after == [(4, 5), (5, 6), (6, 7), (7, 8), (8, 9)]


def test_aligned_pairs_the_last_tokens_of_concept_and_target():
    found = aligned(tokens(1, 5, 6, 7), tokens(1, 9), 8)
    assert found.own == [(2, 2), (3, 2), (4, 2)]
    found = aligned(tokens(1, 5), tokens(1, 7, 8, 9), 8)
    assert found.own == [(2, 4)]


def test_aligned_pairs_a_removed_concept_with_the_word_before_it():
    found = aligned(tokens(1, 2, 5, 3), tokens(1, 2, 3), 8)
    assert found.own == [(3, 2)]
    assert found.after[0] == (4, 3)


def test_aligned_replaces_a_word_where_the_target_only_adds_one():
    found = aligned(tokens(1, 5), tokens(1, 4, 5), 6)
    assert found.own == [(2, 3)]


def test_aligned_pairs_every_position_once():
    for prompt, answer in [
        (tokens(1, 2, 3), tokens(1, 4, 3)),
        (tokens(5), tokens(6, 7, 8)),
        (tokens(5, 6, 7), tokens(1)),
        (tokens(1, 2), tokens(2)),
    ]:
        pairs = aligned(prompt, answer, 8).pairs("all")
        positions = [i for i, _ in pairs]
        assert positions == sorted(set(positions))
        assert all(0 <= i < 8 and 0 <= j < 8 for i, j in pairs)


@pytest.mark.parametrize(
    ("kind", "count"), [("last", 1), ("last_to_end", 21), ("all", 24), ("around", 20)]
)
def test_paired_states_are_those_of_the_tokens_asked_for(untrained, kind, count):
    texts = texts_of(untrained)
    rows = paired_states(texts, ["a red car"], ["a red van"], kind)
    E, V = rows.E, rows.V
    assert E.shape == V.shape == (count, 128)
    assert rows.count == count
    states = texts.encode(["a red car", "a red van"]).double()
    if kind == "last":
        assert torch.equal(E[0], states[0, 3])
        assert torch.equal(V[0], states[1, 3])


def test_paired_states_before_the_concept_are_equal(untrained):
    rows = paired_states(texts_of(untrained), ["a red car at night"], ["a red van at night"])
    E, V = rows.E, rows.V
    assert torch.equal(E[:3], V[:3])  # the encoder reads from left to right
    assert not torch.allclose(E[3:], V[3:])


def test_paired_states_refuse_equal_prompts(untrained):
    with pytest.raises(ErasureError, match="nothing to erase"):
        paired_states(texts_of(untrained), ["a car"], ["a car"])


def test_shell_lies_around_its_rows():
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).double()
    around = shell(rows, 50, cosine=(0.7, 0.9), generator=torch.Generator().manual_seed(1))
    each = around.view(3, 50, 16)
    assert torch.allclose(each.norm(dim=2), rows.norm(dim=1)[:, None].expand(3, 50))
    cosines = torch.cosine_similarity(each, rows[:, None], dim=2)
    assert cosines.min() >= 0.7 - 1e-9
    assert cosines.max() <= 0.9 + 1e-9
    assert cosines.std() > 0.02


def test_without_shared_part_is_orthogonal_over_all_layers():
    generator = torch.Generator().manual_seed(3)
    E, V = (torch.randn(4, 12, generator=generator).double() for _ in range(2))
    layers = torch.randn(5, 7, 12, generator=generator).double()
    left = without_shared_part(E, V, torch.einsum("loi,loj->ij", layers, layers))
    across = torch.einsum("loi,ni,loj,nj->n", layers, left, layers, E)
    before = torch.einsum("loi,ni,loj,nj->n", layers, V, layers, E)
    assert (across.abs() < 1e-9 * before.abs()).all()
    with pytest.raises(ErasureError, match="needs the weights"):
        without_shared_part(E, V, None)


def test_padded_marks_what_follows_the_tokens_of_each_encoder(untrained):
    texts = texts_of(untrained)
    assert texts.padded(["a car", ""], 6).tolist() == [
        [False] * 4 + [True] * 2,
        [False] * 2 + [True] * 4,
    ]
    several = replace(texts, segments=((texts.tokenizer, 5), (None, 2), (texts.tokenizer, None)))
    (found,) = several.padded(["a car"], 12).tolist()
    assert found == [False] * 4 + [True] + [False] * 2 + [False] * 4 + [True]


@pytest.mark.parametrize("whole", [0, 2])
def test_paddings_of_few_prompts_stand_for_those_of_all(untrained, monkeypatch, whole):
    monkeypatch.setattr(model, "LONG_TEXT", 0)
    texts = texts_of(untrained)
    prompts, answers = ([f"a {c} {w}" for c in ("red", "blue", "green")] for w in ("car", "van"))
    every, few = (paired_states(texts, prompts, answers, whole=n) for n in (None, whole))
    assert few.count == every.count == len(every.E)
    assert len(few.E) < len(every.E)
    ratio = few.E.square().sum() / every.E.square().sum()
    assert ratio == pytest.approx(1, abs=0.1)


def test_joined_rows_keep_their_products(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    parts = [
        Rows(*(torch.randn(5, 4, generator=generator).double() for _ in range(2)), 7.0)
        for _ in range(6)
    ]
    whole = Rows.joined(parts)
    monkeypatch.setattr(token_pairs, "MOST_ROWS", 12)
    few = Rows.joined(parts)
    assert len(few.E) < len(whole.E) == 30
    assert few.count == whole.count == 42
    assert torch.allclose(few.E.T @ few.E, whole.E.T @ whole.E)
    across = [(rows.V - rows.E).T @ rows.E for rows in (few, whole)]
    assert torch.allclose(*across)
