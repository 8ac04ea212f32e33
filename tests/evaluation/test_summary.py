import dataclasses
import random

import pytest
from huggingface_hub import ModelCard

from diffusers_erase.eraser.card import NUMBERS
from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.runner import Judgement
from diffusers_erase.evaluation.summary import Summary


RELATIONS = {"target": "target", "synonyms": "paraphrase", "near": "neighbour", "far": "other"}


def judgements(rates, n=100):
    """Judgements with these shares of hits, group -> (base, erased), in random order."""
    found = []
    for group, shares in rates.items():
        for side, share in zip(("base", "erased"), shares, strict=True):
            for i in range(n):
                label = "wanted" if i < share * n else "something else"
                judgement = Judgement(
                    side, group, f"{group} {i % 20}", ("wanted",), i, label, 0.9, True, (label,), ()
                )
                found.append(judgement)
    random.Random(0).shuffle(found)
    return found


GOOD = {"target": (1, 0), "synonyms": (1, 0.1), "near": (0.9, 0.9), "far": (1, 0.98)}


def test_summary_counts_rates_and_combines_them_as_erasebench():
    summary = Summary.of(judgements(GOOD), RELATIONS)
    rows = {row.name: row for row in summary.rows}
    assert (rows["near"].base.value, rows["far"].erased.value) == (0.9, 0.98)
    parts = [summary.rate(name).value for name in ("efficacy", "generality", "sensitivity")]
    assert parts == [0, 0.1, 0.9]
    assert summary.harmonic == pytest.approx(3 / (1 / 1 + 1 / 0.9 + 1 / 0.9))
    assert summary.verdict == "pass"
    assert summary.failures == []


def test_summary_of_equal_sides_has_no_difference_and_fails():
    summary = Summary.of(judgements(dict.fromkeys(RELATIONS, (0.9, 0.9))), RELATIONS)
    for row in summary.rows:
        assert row.difference == 0
        low, high = row.interval
        assert low <= 0 <= high
    assert summary.verdict == "fail"
    assert {row.name for row in summary.failures} == {"target", "synonyms"}


def test_summary_fails_where_everything_is_gone():
    summary = Summary.of(judgements(dict.fromkeys(RELATIONS, (1, 0))), RELATIONS)
    assert summary.rate("efficacy").value == 0
    assert summary.verdict == "fail"
    assert summary.harmonic == 0
    assert {row.name for row in summary.failures} == {"near", "far"}


def test_summary_of_few_pictures_is_undecided():
    assert Summary.of(judgements(GOOD, n=10), RELATIONS).verdict == "undecided"


def test_summary_leaves_out_groups_that_the_base_shows_too_rarely():
    summary = Summary.of(judgements({**GOOD, "target": (0.3, 0)}), RELATIONS)
    assert summary.rate("efficacy") is None
    assert summary.harmonic is None
    assert summary.verdict == "not measured"
    assert not summary.rows[0].measurable
    without = Summary.of(judgements({"target": (1, 0)}), {"target": "target"})
    assert without.verdict == "not measured"
    assert without.harmonic is None


def test_summary_counts_invalid_pictures_in_the_denominator():
    several = [
        dataclasses.replace(each, valid=False, labels=())
        if each.group == "near" and each.side == "erased" and each.seed < 50
        else each
        for each in judgements(GOOD)
    ]
    row = next(r for r in Summary.of(several, RELATIONS).rows if r.name == "near")
    assert (row.erased.hits, row.erased.n, row.invalid.hits) == (40, 100, 50)


def test_summary_refuses_sides_with_different_prompts():
    several = judgements(GOOD)
    with pytest.raises(ErasureError, match="99 with the eraser"):
        Summary.of([x for x in several if (x.side, x.seed) != ("erased", 3)], RELATIONS)
    with pytest.raises(ErasureError, match="of other prompts"):
        Summary.of(
            [dataclasses.replace(x, seed=x.seed + 1) if x.side == "base" else x for x in several],
            RELATIONS,
        )


def test_summary_card_is_written_into_the_model_card(playground, make_eraser, tmp_path):
    summary = Summary.of(judgements(GOOD), RELATIONS, {"null": 0.0, "keep": 1e-3})
    eraser = make_eraser(playground.unet)
    written = [
        eraser.save_pretrained(tmp_path / folder / "car", results=summary.card()) / "README.md"
        for folder in ("a", "b")
    ]
    assert written[0].read_bytes() == written[1].read_bytes()
    card = ModelCard.load(written[0])
    results = {r.dataset_name: r.metric_value for r in card.data.eval_results}
    assert results["the concept, by name"] == 0
    assert results["its nearest neighbours"] == 0.9
    assert "not measured" in card.text  # no attack was run
    assert f"| {NUMBERS['harmonic_mean']} |" in card.text
