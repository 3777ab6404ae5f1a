"""Intervals and verdicts: against scipy, published examples, invariances and simulated coverage."""

import dataclasses
import math
import time

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sftdiff.stats import (
    Interval,
    _newcombe,
    _square_and_add,
    _wilson,
    call,
    difference,
    level,
    minimum_detectable_difference,
)

SHARE = (0.0, 1.0)
RATING = (0.0, 10.0)
Cells = NDArray[np.float64]

bits = st.lists(st.booleans(), min_size=1, max_size=60)
bit_pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
rating_pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30)


def row(values: object) -> Cells:
    """One seed's scores, shape (1, scenarios)."""
    return np.asarray(values, dtype=np.float64)[None, :]


def sides(pairs: list[tuple[int, int]]) -> tuple[Cells, Cells]:
    both = np.asarray(pairs, dtype=np.float64)
    return both[None, :, 0], both[None, :, 1]


def table(both: int, only_first: int, only_second: int, neither: int) -> tuple[Cells, Cells]:
    """The two binary rows of a paired 2x2 table."""
    return sides([(1, 1)] * both + [(1, 0)] * only_first + [(0, 1)] * only_second + [(0, 0)] * neither)


def limits(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


# --- level -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ones", "count"), [(0, 1), (1, 1), (0, 30), (30, 30), (1, 30), (7, 30), (15, 40), (199, 200)])
def test_level_of_binary_shares_is_scipys_wilson_interval(ones: int, count: int) -> None:
    found = level(row([1] * ones + [0] * (count - ones)), "share", SHARE, 10_000, 0)
    wanted = scipy.stats.binomtest(ones, count).proportion_ci(0.95, method="wilson")
    assert limits(found) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert found.value == pytest.approx(ones / count)
    assert found.method == f"Wilson score interval, {count} scenarios"
    assert found.scope == "over scenarios, given this one training"


@given(bits, st.randoms(use_true_random=False))
def test_wilson_ignores_scenario_order_and_contains_the_estimate(values: list[bool], shuffler: object) -> None:
    mixed = list(values)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    found = level(row(values), "share", SHARE, 100, 0)
    assert limits(found) == limits(level(row(mixed), "share", SHARE, 100, 0))
    assert 0 <= found.low <= found.value <= found.high <= 1
    mirrored = level(1 - row(values), "share", SHARE, 100, 0)
    assert limits(found) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-12)


def test_level_of_ratings_agrees_with_scipys_percentile_bootstrap() -> None:
    scores = np.random.default_rng(3).uniform(0, 10, 40)
    found = level(row(scores), "rating", RATING, 20_000, 1)
    reference = scipy.stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", vectorized=True, rng=np.random.default_rng(9)
    ).confidence_interval
    assert limits(found) == pytest.approx((reference.low, reference.high), abs=0.05)
    assert found.value == pytest.approx(scores.mean())
    assert found.method == "percentile bootstrap over scenarios, 20000 resamples"


def test_fractional_shares_use_the_bootstrap() -> None:
    found = level(row([0.25, 0.5, 1.0, 0.75, 0.0]), "share", SHARE, 1000, 0)
    assert found.method.startswith("percentile bootstrap over scenarios")
    assert 0 <= found.low < found.value < found.high <= 1


def test_two_level_bootstrap_follows_its_definition() -> None:
    rng = np.random.default_rng(5)
    scores = np.clip(5 + rng.normal(0, 1, (5, 1)) + rng.normal(0, 2, (1, 20)) + rng.normal(0, 1, (5, 20)), 0, 10)
    means = []
    for _ in range(8000):  # the plain loop: seeds, then the same scenarios for all of them
        seeds, scenarios = rng.integers(0, 5, 5), rng.integers(0, 20, 20)
        means.append(scores[np.ix_(seeds, scenarios)].mean())
    found = level(scores, "rating", RATING, 20_000, 2)
    assert limits(found) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.08)
    assert found.value == pytest.approx(scores.mean())
    assert found.scope == "over seeds and scenarios"
    assert found.method == "two-level percentile bootstrap over 5 seeds, then scenarios, 20000 resamples"


def test_several_seeds_of_binary_shares_are_resampled_on_two_levels() -> None:
    scores = np.random.default_rng(0).integers(0, 2, (3, 20)).astype(float)
    assert level(scores, "share", SHARE, 500, 0).method.startswith("two-level")


def test_two_levels_are_wider_than_one_when_seeds_differ() -> None:
    scenarios = np.random.default_rng(1).uniform(3, 7, 40)
    alike, apart = np.tile(scenarios, (5, 1)), scenarios + np.array([[-2], [-1], [0], [1], [2]])
    narrow, wide = (level(scores, "rating", RATING, 4000, 0) for scores in (alike, apart))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


@pytest.mark.parametrize("shape", [(1, 30), (4, 30), (1, 1)])
@pytest.mark.parametrize("score", [0.0, 4.0, 10.0])
def test_degenerate_bootstrap_falls_back_to_wilson_and_says_so(shape: tuple[int, int], score: float) -> None:
    found = level(np.full(shape, score), "rating", RATING, 500, 0)
    low, high = _wilson(score / 10, shape[1])
    assert limits(found) == pytest.approx((10 * low, 10 * high))
    assert found.low <= found.value <= found.high and found.low < found.high
    assert "Wilson" in found.method and "degenerate" in found.method


def test_degenerate_fallback_respects_a_scale_that_does_not_start_at_zero() -> None:
    found = level(np.full((1, 20), 1.0), "rating", (1.0, 5.0), 500, 0)
    assert limits(found) == pytest.approx((1.0, 1 + 4 * _wilson(0, 20)[1]))


def test_missing_scores_leave_the_mean() -> None:
    gaps = np.array([[1.0, np.nan, 3.0, 8.0], [2.0, np.nan, np.nan, 4.0]])
    assert level(gaps, "rating", RATING, 500, 0).value == pytest.approx(18 / 5)
    binary = [1.0, 0.0, 1.0, 0.0, 0.0]
    padded = level(row([np.nan, *binary, np.nan]), "share", SHARE, 500, 0)
    assert padded == level(row(binary), "share", SHARE, 500, 0)
    ratings = level(row([np.nan, 2.0, 5.0, 9.0]), "rating", RATING, 500, 0)
    assert ratings == level(row([2.0, 5.0, 9.0]), "rating", RATING, 500, 0)


def test_a_seed_without_any_valid_score_does_not_count_as_a_seed() -> None:
    found = level(np.array([[1.0, 0.0, 1.0], [np.nan] * 3]), "share", SHARE, 500, 0)
    assert found == level(row([1.0, 0.0, 1.0]), "share", SHARE, 500, 0)


def test_resamples_that_hit_only_missing_cells_are_dropped() -> None:
    found = level(np.array([[1.0, np.nan], [np.nan, 9.0]]), "rating", RATING, 500, 0)
    assert (found.value, found.low, found.high) == (5.0, 1.0, 9.0)


def test_scope_can_be_overridden() -> None:
    scores = row([1.0, 0.0])
    assert level(scores, "share", SHARE, 500, 0, scope="over scenarios, no training").scope == "over scenarios, no training"
    assert difference(scores, scores, "share", SHARE, 500, 0, scope="mine").scope == "mine"


def test_same_seed_same_result_and_other_seed_another() -> None:
    scores = np.random.default_rng(0).uniform(0, 10, (3, 20))
    first = level(scores, "rating", RATING, 1000, 4)
    assert first == level(scores, "rating", RATING, 1000, 4)
    assert limits(first) != limits(level(scores, "rating", RATING, 1000, 5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.value = 0.0  # type: ignore[misc]


def test_ten_thousand_resamples_take_well_under_a_second() -> None:
    scores = np.random.default_rng(0).uniform(0, 10, (5, 40))
    start = time.process_time()
    difference(scores, scores[::-1], "rating", RATING, 10_000, 0)
    assert time.process_time() - start < 0.8


def test_inputs_are_not_changed_and_integers_are_accepted() -> None:
    scores = np.array([[0, 10, 5, 5]])
    assert level(scores, "rating", RATING, 500, 0).value == 5.0
    assert scores.tolist() == [[0, 10, 5, 5]]


# --- difference --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        # Complete response before and after consolidation (Cavo 2012), limits of the R package contingencytables:
        ((59, 6, 16, 80), (-0.1186, -0.0046)),
        # Airway hyper-responsiveness (Bentur 2009), Fagerland, Lydersen and Laake (2014): -0.507 to -0.026.
        ((1, 1, 7, 12), (-0.507, -0.026)),
    ],
)
def test_newcombe_reproduces_published_examples(counts: tuple[int, int, int, int], wanted: tuple[float, float]) -> None:
    found = difference(*table(*counts), "share", SHARE, 500, 0)
    assert limits(found) == pytest.approx(wanted, abs=6e-4 if counts[0] == 1 else 6e-5)
    assert found.value == pytest.approx((counts[1] - counts[2]) / sum(counts))
    assert found.method.startswith("Newcombe paired score interval (method 10)")


@given(bit_pairs, st.randoms(use_true_random=False))
def test_newcombe_is_antisymmetric_bounded_and_ignores_order(pairs: list[tuple[int, int]], shuffler: object) -> None:
    arm, baseline = sides(pairs)
    found = difference(arm, baseline, "share", SHARE, 500, 0)
    swapped = difference(baseline, arm, "share", SHARE, 500, 0)
    assert limits(found) == pytest.approx((-swapped.high, -swapped.low), abs=1e-12)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    mixed = list(pairs)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    assert limits(difference(*sides(mixed), "share", SHARE, 500, 0)) == limits(found)


def test_newcombe_without_correlation_is_the_independent_square_and_add() -> None:
    arm, baseline = table(5, 5, 5, 5)  # phi = 0
    (low, high), gap = _wilson(0.5, 20), 0.0
    half = math.hypot(0.5 - low, high - 0.5)
    assert _newcombe(arm[0] == 1, baseline[0] == 1) == pytest.approx((gap - half, gap + half))
    assert _square_and_add(0.5, 0.5, 20, 0.0) == pytest.approx((-half, half))


def test_newcombe_corrects_positive_phi_only() -> None:
    # 8*2 - 3*3 = 7 <= 16/2: set to 0.
    arm, baseline = table(8, 3, 3, 2)
    assert _newcombe(arm[0] == 1, baseline[0] == 1) == _square_and_add(11 / 16, 11 / 16, 16, 0.0)
    # 10*6 - 2*2 = 56 > 20/2: less 10, over sqrt(12*8*12*8) = 96.
    arm, baseline = table(10, 2, 2, 6)
    assert _newcombe(arm[0] == 1, baseline[0] == 1) == pytest.approx(_square_and_add(0.6, 0.6, 20, 46 / 96))
    # 3*3 - 7*7 = -40: kept, over 10*10.
    arm, baseline = table(3, 7, 7, 3)
    assert _newcombe(arm[0] == 1, baseline[0] == 1) == pytest.approx(_square_and_add(0.5, 0.5, 20, -0.4))


def test_newcombe_with_an_empty_margin_takes_phi_as_zero() -> None:
    found = difference(row([1.0] * 20), row([0.0] * 20), "share", SHARE, 500, 0)
    half = math.hypot(1 - _wilson(1, 20)[0], _wilson(0, 20)[1])
    assert limits(found) == pytest.approx((1 - half, 1.0))


def test_paired_ratings_agree_with_scipys_bootstrap_of_the_differences() -> None:
    rng = np.random.default_rng(8)
    baseline = rng.uniform(0, 8, 40)
    arm = baseline + rng.uniform(0, 2, 40)
    found = difference(row(arm), row(baseline), "rating", RATING, 20_000, 0)
    reference = scipy.stats.bootstrap(
        (arm - baseline,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert limits(found) == pytest.approx((reference.low, reference.high), abs=0.02)
    assert found.method == "paired percentile bootstrap over scenarios, 20000 resamples"


@settings(deadline=None, max_examples=50)
@given(rating_pairs, st.integers(0, 4))
def test_shifting_both_arms_changes_nothing_where_differences_vary(pairs: list[tuple[int, int]], shift: int) -> None:
    arm, baseline = sides(pairs)
    found = difference(arm, baseline, "rating", RATING, 200, 7)
    moved = difference(arm + shift, baseline + shift, "rating", RATING, 200, 7)
    assert moved.value == pytest.approx(found.value) and moved.method == found.method
    if "degenerate" not in found.method:
        assert limits(moved) == pytest.approx(limits(found), abs=1e-9)
    swapped = difference(baseline, arm, "rating", RATING, 200, 7)
    assert limits(swapped) == pytest.approx((-found.high, -found.low), abs=1e-9)
    assert -10 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 10


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(1, 4))
def test_shifting_the_ratings_shifts_the_bootstrap_level(values: list[int], shift: int) -> None:
    found = level(row(values), "rating", RATING, 200, 7)
    moved = level(row(values) + shift, "rating", RATING, 200, 7)
    assert moved.value == pytest.approx(found.value + shift)
    if "degenerate" not in found.method:
        assert limits(moved) == pytest.approx((found.low + shift, found.high + shift))


def test_equal_differences_fall_back_to_square_and_add() -> None:
    baseline = np.linspace(1, 8, 15)
    found = difference(row(baseline + 1), row(baseline), "rating", RATING, 500, 0)
    low, high = _square_and_add((baseline.mean() + 1) / 10, baseline.mean() / 10, 15, 0.0)
    assert limits(found) == pytest.approx((10 * low, 10 * high))
    assert found.low < found.value == pytest.approx(1.0) and found.value < found.high
    assert "square-and-add" in found.method and "conservative" in found.method


def test_seeds_are_paired_when_both_sides_have_as_many() -> None:
    rng = np.random.default_rng(0)
    students = np.array([[1.0], [4.0], [7.0]])
    baseline = students + rng.uniform(0, 1, (3, 30))
    arm = baseline + 1 + rng.uniform(-0.1, 0.1, (3, 30))
    found = difference(arm, baseline, "rating", RATING, 1000, 0)
    assert found.high - found.low < 0.1  # the large spread of the seeds cancels
    assert found.value == pytest.approx(arm.mean() - baseline.mean())
    assert found.scope == "over seeds and scenarios" and found.method.startswith("paired two-level")


def test_a_single_row_is_used_for_every_seed_of_the_other_side() -> None:
    rng = np.random.default_rng(0)
    arm, baseline = rng.uniform(0, 10, (4, 20)), rng.uniform(0, 10, (1, 20))
    found = difference(arm, baseline, "rating", RATING, 1000, 0)
    assert found == difference(arm, np.repeat(baseline, 4, axis=0), "rating", RATING, 1000, 0)
    assert found.scope == "over seeds and scenarios"
    swapped = difference(baseline, arm, "rating", RATING, 1000, 0)
    assert limits(swapped) == pytest.approx((-found.high, -found.low))


def test_scenarios_missing_on_either_side_leave_the_pair() -> None:
    arm, baseline = row([1, np.nan, 0, 1, 1, 0]), row([0, 1, np.nan, 1, 0, 0])
    found = difference(arm, baseline, "share", SHARE, 500, 0)
    kept = [0, 3, 4, 5]
    assert found == difference(arm[:, kept], baseline[:, kept], "share", SHARE, 500, 0)
    assert found.value == pytest.approx(0.5)
    seeds = difference(np.array([[2.0, np.nan, 6.0], [3.0, 4.0, 5.0]]), row([1.0, 1.0, np.nan]), "rating", RATING, 500, 0)
    assert seeds.value == pytest.approx((1 + 2 + 3) / 3)


# --- verdict and planning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.2, 0.5, "higher"),
        (-0.5, -0.2, "lower"),
        (0.01, 0.05, "higher"),  # within the bounds, yet above 0
        (-0.05, -0.01, "lower"),
        (-0.05, 0.05, "equivalent"),
        (0.0, 0.05, "equivalent"),
        (-0.1, 0.05, "unresolved"),  # touches the bound
        (-0.05, 0.1, "unresolved"),
        (-0.3, 0.2, "unresolved"),
    ],
)
def test_call(low: float, high: float, verdict: str) -> None:
    assert call(Interval((low + high) / 2, low, high, "", ""), 0.1) == verdict


def test_call_never_finds_equivalence_without_a_margin() -> None:
    assert call(Interval(0, 0, 0, "", ""), 0.0) == "unresolved"
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="smallest_effect"):
            call(Interval(0, 0, 0, "", ""), wrong)


def test_minimum_detectable_difference() -> None:
    assert minimum_detectable_difference(100, 1.0) == pytest.approx(0.28016, abs=1e-5)  # (1.95996 + 0.84162) / 10
    assert minimum_detectable_difference(25, 2.0) == pytest.approx(4 * minimum_detectable_difference(100, 1.0))
    assert minimum_detectable_difference(40, 0.0) == 0.0
    rng = np.random.default_rng(0)  # at that difference, the z test finds it in 80 % of cases
    true = minimum_detectable_difference(50, 0.5, power=0.8)
    found = np.abs(rng.normal(true, 0.5, (4000, 50)).mean(axis=1)) > 1.959964 * 0.5 / math.sqrt(50)
    assert found.mean() == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize(
    "wrong", [(0, 1.0, 0.8, 0.05), (9, -1.0, 0.8, 0.05), (9, math.nan, 0.8, 0.05), (9, 1, 1, 0.05), (9, 1, 0.8, 0)]
)
def test_minimum_detectable_difference_errors(wrong: tuple[int, float, float, float]) -> None:
    with pytest.raises(ValueError):
        minimum_detectable_difference(*wrong)


# --- coverage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_wilson_coverage(share: float) -> None:
    draws = np.random.default_rng(1).random((600, 30)) < share
    found = [level(row(draw), "share", SHARE, 100, 0) for draw in draws]
    assert 0.92 <= np.mean([each.low <= share <= each.high for each in found]) <= 0.98


def test_newcombe_coverage() -> None:
    rng = np.random.default_rng(2)
    cells = rng.choice(4, size=(600, 40), p=[0.3, 0.3, 0.1, 0.3])  # both, only arm, only baseline, neither
    found = [difference(row(draw <= 1), row((draw == 0) | (draw == 2)), "share", SHARE, 100, 0) for draw in cells]
    assert 0.92 <= np.mean([each.low <= 0.2 <= each.high for each in found]) <= 0.985


def test_rating_bootstrap_coverage() -> None:
    draws = np.random.default_rng(3).beta(2, 5, (400, 30)) * 10
    found = [level(row(draw), "rating", RATING, 500, number) for number, draw in enumerate(draws)]
    assert 0.90 <= np.mean([each.low <= 20 / 7 <= each.high for each in found]) <= 0.98


def test_two_level_coverage_with_small_seed_effects() -> None:
    rng = np.random.default_rng(4)
    found = []
    for number in range(250):
        scores = 5 + rng.normal(0, 0.2, (5, 1)) + rng.normal(0, 1, (1, 30)) + rng.normal(0, 0.5, (5, 30))
        found.append(level(np.clip(scores, 0, 10), "rating", RATING, 400, number))
    assert 0.90 <= np.mean([each.low <= 5 <= each.high for each in found]) <= 0.99


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "kind", "scale", "resamples", "words"),
    [
        ([[np.nan, np.nan]], "share", SHARE, 500, "no valid score"),
        ([0.0, 1.0], "share", SHARE, 500, "shape"),
        (np.zeros((1, 0)), "share", SHARE, 500, "shape"),
        ([[0.0, 1.0]], "count", SHARE, 500, "kind"),
        ([[0.0, 1.0]], "share", RATING, 500, "a share has the scale"),
        ([[0.0, 1.0]], "rating", (10.0, 0.0), 500, "scale"),
        ([[0.0, 1.0]], "rating", (0.0, math.inf), 500, "scale"),
        ([[0.0, 11.0]], "rating", RATING, 500, "outside the scale"),
        ([[0.0, -0.1]], "share", SHARE, 500, "outside the scale"),
        ([[0.0, math.inf]], "rating", RATING, 500, "outside the scale"),
        ([[0.0, 1.0]], "rating", RATING, 10, "resamples"),
    ],
)
def test_wrong_input_is_refused(
    scores: Cells, kind: str, scale: tuple[float, float], resamples: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        level(scores, kind, scale, resamples, 0)
    with pytest.raises(ValueError, match=words):
        difference(scores, scores, kind, scale, resamples, 0)


@pytest.mark.parametrize(
    ("arm", "baseline", "words"),
    [
        (np.zeros((2, 4)), np.zeros((3, 4)), "arm has 2 seeds, baseline 3"),
        (np.zeros((1, 4)), np.zeros((1, 5)), "arm has 4 scenarios, baseline 5"),
        ([[1.0, np.nan]], [[np.nan, 1.0]], "nothing to pair"),
        ([[1.0, 0.0]], [[np.nan, np.nan]], "baseline holds no valid score"),
        ([[np.nan, np.nan]], [[1.0, 0.0]], "arm holds no valid score"),
    ],
)
def test_sides_that_do_not_pair_are_refused(arm: Cells, baseline: Cells, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        difference(arm, baseline, "share", SHARE, 500, 0)
