import math
import random

import pytest
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from diffusers_erase.errors import ErasureError
from diffusers_erase.evaluation.metrics import (
    Rate,
    difference,
    erasebench,
    esr,
    paired_bootstrap,
    psr,
    spearman,
)


COUNTS = [(0, 64), (32, 64), (64, 64), (8, 10), (0, 50), (12, 200), (50, 142), (1, 1), (0, 1)]


@pytest.mark.parametrize(("hits", "n"), COUNTS)
def test_rate_interval_is_wilsons_by_statsmodels(hits, n):
    expected = proportion_confint(hits, n, method="wilson")
    assert Rate(hits, n).interval == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("before", COUNTS)
@pytest.mark.parametrize("after", COUNTS)
def test_difference_has_newcombes_interval_by_statsmodels(before, after):
    expected = confint_proportions_2indep(*after, *before, method="newcomb")
    assert difference(Rate(*before), Rate(*after)) == pytest.approx(expected, abs=1e-7)


def test_rate_interval_solves_wilsons_equation():
    """Its ends are the p for which the observed share lies 1.96 standard errors away."""
    rate = Rate(7, 40)
    for p in rate.interval:
        assert abs(rate.value - p) == pytest.approx(
            1.959964 * math.sqrt(p * (1 - p) / rate.n), rel=1e-6
        )


def test_rate_adds_up_and_is_nan_for_no_pictures():
    assert Rate(1, 4) + Rate(2, 6) == Rate(3, 10)
    assert math.isnan(Rate(0, 0).value)
    assert Rate(0, 0).interval == (0.0, 1.0)
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        Rate(5, 4)


def test_difference_has_the_interval_of_newcombes_table():
    """56 of 70 against 48 of 80, his table II(a)."""
    assert difference(Rate(48, 80), Rate(56, 70)) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = difference(Rate(64, 64), Rate(0, 64))
    assert -1 <= low < high < -0.9


def test_erasebench_is_zero_if_one_part_fails_and_none_if_one_was_not_measured():
    assert erasebench(1.0, 0.0, 1.0) == 0.0
    assert erasebench(0.1, None, 0.9) is None
    assert erasebench(None, 0.1, 0.9) is None


@pytest.mark.parametrize(
    ("efficacy", "generality", "sensitivity", "printed"),
    [
        (86.5, 90.2, 85.0, 15.97),  # Stable Diffusion 1.4 itself, visual similarity
        (24.5, 50.5, 65.9, 61.70),  # ESD
        (41.8, 68.3, 82.7, 49.32),  # UCE
        (8.1, 20.0, 65.4, 77.58),  # Receler
        (15.6, 37.7, 66.4, 69.83),  # MACE
        (8.7, 39.1, 64.3, 69.88),  # AdvUnlearn
        (18.9, 31.4, 86.1, 77.88),  # UCE, binomial
        (10.3, 12.6, 57.5, 75.04),  # Receler, binomial
    ],
)
def test_erasebench_gives_the_numbers_of_its_table(efficacy, generality, sensitivity, printed):
    found = erasebench(efficacy / 100, generality / 100, sensitivity / 100)
    assert 100 * found == pytest.approx(printed, abs=0.01)


RANKED = [
    ["tench", "golf ball", "church"],
    ["church", "Tench", "golf ball"],
    ["English Springer", "church", "tench"],
    [],
]


def test_esr_counts_pictures_without_the_label_among_the_first_k():
    assert esr(RANKED, "tench") == Rate(3, 4)
    assert esr(RANKED, "tench", 2) == Rate(2, 4)
    assert esr(RANKED, "tench", 5) == Rate(1, 4)


def test_psr_counts_pictures_with_the_label_among_the_first_k():
    wanted = ["tench", "church", "english springer", "church"]
    assert psr(RANKED, wanted, 1) == Rate(3, 4)
    assert psr(RANKED, "golf ball", 2) == Rate(1, 4)


def test_psr_compares_whole_labels_in_upper_and_lower_case():
    assert psr([["English springer"]], "English Springer") == Rate(1, 1)
    assert psr([["golf ball"]], "ball") == Rate(0, 1)


def test_esr_and_psr_of_the_same_pictures_sum_to_one():
    for k in (1, 2, 3):
        assert esr(RANKED, "church", k).hits + psr(RANKED, "church", k).hits == len(RANKED)


def test_psr_and_esr_refuse_missing_labels_and_k_below_1():
    with pytest.raises(ErasureError, match="4 pictures need as many wanted labels; got 2"):
        psr(RANKED, ["tench", "church"])
    with pytest.raises(ErasureError, match="1 or more; got 0"):
        esr(RANKED, "tench", 0)


def random_hits(n, share, seed):
    rng = random.Random(seed)
    return [rng.random() < share for _ in range(n)]


def test_paired_bootstrap_is_deterministic_and_depends_on_its_seed():
    before, after = random_hits(60, 0.8, 1), random_hits(60, 0.3, 2)
    prompts = [f"prompt {i // 5}" for i in range(60)]
    low, high = found = paired_bootstrap(before, after, prompts, resamples=50)
    assert found == paired_bootstrap(before, after, prompts, resamples=50)
    assert found != paired_bootstrap(before, after, prompts, resamples=50, seed=1)
    assert -1 <= low < sum(after) / 60 - sum(before) / 60 < high < 0


def test_paired_bootstrap_is_a_point_if_all_pairs_change_alike():
    for n, prompts in ((8, ["a"] * 8), (40, [f"{i // 2}" for i in range(40)])):
        assert paired_bootstrap([True] * n, [False] * n, prompts) == (-1.0, -1.0)
        assert paired_bootstrap([True] * n, [True] * n, prompts) == (0.0, 0.0)


def test_paired_bootstrap_resamples_pairs_alone_for_fewer_than_ten_prompts():
    before, after = random_hits(90, 0.8, 3), random_hits(90, 0.5, 4)
    one, nine, ten = (
        paired_bootstrap(before, after, [f"{i % groups}" for i in range(90)])
        for groups in (1, 9, 10)
    )
    assert one == nine
    assert one != ten


def test_paired_bootstrap_of_one_prompt_has_the_binomial_interval():
    """One prompt, half of the pairs lost: the ends are near 1.96 standard errors away."""
    before, after = [True] * 400, [i % 2 == 0 for i in range(400)]
    low, high = paired_bootstrap(before, after, ["a"] * 400)
    assert (low, high) == pytest.approx((-0.5 - 0.049, -0.5 + 0.049), abs=0.004)


def test_paired_bootstrap_is_wider_where_prompts_differ():
    """Half of 200 are lost both times: all seeds of half of the prompts, or half of each's.

    The first is a share of 20, whose ends at 2.5 % are 6 and 14.
    """
    prompts = [f"{i // 10}" for i in range(200)]
    before = [True] * 200
    by_prompt = paired_bootstrap(before, [i // 10 % 2 == 0 for i in range(200)], prompts)
    scattered = paired_bootstrap(before, [i % 2 == 0 for i in range(200)], prompts)
    width = [high - low for low, high in (by_prompt, scattered)]
    assert width[0] == pytest.approx(8 / 20)
    assert width[0] > 2 * width[1]


def test_paired_bootstrap_takes_prompts_with_unequal_numbers_of_seeds():
    prompts = [f"{i}" for i in range(12) for _ in range(i + 1)]
    before, after = random_hits(len(prompts), 0.9, 5), random_hits(len(prompts), 0.2, 6)
    low, high = paired_bootstrap(before, after, prompts, resamples=2000)
    assert low < (sum(after) - sum(before)) / len(prompts) < high


def test_paired_bootstrap_covers_the_truth_in_about_95_percent():
    hits, trials, n = 0, 200, 60
    for trial in range(trials):
        before, after = random_hits(n, 0.8, 2 * trial), random_hits(n, 0.4, 2 * trial + 1)
        low, high = paired_bootstrap(before, after, ["a"] * n, resamples=500)
        hits += low <= -0.4 <= high
    assert 0.89 <= hits / trials <= 0.99


def test_paired_bootstrap_refuses_what_are_no_pairs():
    with pytest.raises(ErasureError, match="a value before"):
        paired_bootstrap([], [], [])
    with pytest.raises(ErasureError, match="got 2, 1 and 2"):
        paired_bootstrap([True, True], [True], ["a", "b"])
    with pytest.raises(ErasureError, match=r"true or false; got 0\.5"):
        paired_bootstrap([True], [0.5], ["a"])
    with pytest.raises(ErasureError, match="resamples"):
        paired_bootstrap([True], [True], ["a"], resamples=0)


def test_spearman_depends_on_ranks_only():
    x = [0.1, 2.0, 3.0, 40.0]
    assert spearman(x, [math.exp(value) for value in x]) == pytest.approx(1)
    assert spearman(x, [-(value**3) for value in x]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6·4/(5·24)


def test_spearman_gives_equal_values_their_average_rank():
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / √(4.5 · 5)."""
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(22.5))


def test_spearman_is_none_for_constants_and_for_two_values():
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2, 3], [0, 0, 0]) is None
    assert spearman([1, 2], [1, 2]) is None


def test_spearman_refuses_what_are_no_pairs():
    with pytest.raises(ErasureError, match="needs pairs"):
        spearman([1, 2, 3], [1, 2])
    with pytest.raises(ErasureError, match="nan"):
        spearman([1, 2, math.nan], [1, 2, 3])
