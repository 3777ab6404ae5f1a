"""The transfer of an arm: against Fieller's closed form, cases worked by hand, invariances, floors, and simulated coverage."""

import math

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sftdiff import stats
from sftdiff.stats import Interval
from sftdiff.transfer import Bounds, Transfer, call_transfer, differs, transfer
from tests.bench.transfer import Sweep, rates

Cells = NDArray[np.float64]
SHARE = (0.0, 1.0)
RATING = (0.0, 10.0)


def full(share: float, seeds: int = 3, scenarios: int = 20) -> Cells:
    """Scores that are all equal."""
    return np.full((seeds, scenarios), share)


def shares(rng: np.random.Generator, levels: tuple[float, ...], seeds: int = 3, scenarios: int = 20) -> list[Cells]:
    """Sides of 0s and 1s whose scenarios go together."""
    scenario = rng.uniform(-0.1, 0.1, (1, scenarios))
    return [(rng.random((seeds, scenarios)) < level + scenario).astype(float) for level in levels]


def limits(found: Transfer) -> tuple[float, float]:
    return found.low, found.high


# --- against the closed form ---------------------------------------------------------------------------------------------


def fieller(arm: Cells, alternative: Cells, original: Cells, alpha: float) -> list[float]:
    """The roots c of mean(d)**2 = t**2 var(d) / n with d = arm - (1 - c) alternative - c original, n scenarios."""
    top, bottom = (arm - alternative)[0], (original - alternative)[0]
    cov = np.cov(top, bottom) / top.size
    t2 = scipy.stats.t.ppf(1 - alpha / 2, top.size - 1) ** 2
    square = [bottom.mean() ** 2 - t2 * cov[1, 1], -2 * (top.mean() * bottom.mean() - t2 * cov[0, 1])]
    return sorted(np.roots([*square, top.mean() ** 2 - t2 * cov[0, 0]]).real.tolist())


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3, 0.2])
@pytest.mark.parametrize("truth", [-0.3, 0.0, 0.4, 1.0, 1.5])
def test_one_seed_of_ratings_has_fiellers_limits(truth: float, alpha: float) -> None:
    rng = np.random.default_rng(7)
    shared, noise = rng.uniform(-1, 1, 30), rng.uniform(-1, 1, (3, 1, 30))
    arm, alternative, original = (mean + shared + each for mean, each in zip((3 + 3 * truth, 3, 6), noise, strict=True))
    found = transfer(np.clip(arm, 0, 10), alternative, original, "rating", RATING, alpha)
    assert limits(found) == pytest.approx(fieller(arm, alternative, original, alpha), abs=1e-5)
    assert found.value == pytest.approx((arm - alternative).mean() / (original - alternative).mean())
    assert (found.seeds, found.scenarios) == (1, 30)


@pytest.mark.parametrize("kind", ["share", "rating"])
def test_0_and_1_are_excluded_where_the_arm_differs_from_that_side(kind: str) -> None:
    rng, excluded = np.random.default_rng(3), {0: 0, 1: 0}
    for _ in range(60):
        sides = shares(rng, (float(rng.choice([0.2, 0.4, 0.8])), 0.2, 0.8), scenarios=30)
        arm, alternative, original = sides if kind == "share" else [3 * side + 4 * rng.random(side.shape) for side in sides]
        scale = SHARE if kind == "share" else RATING
        found = transfer(arm, alternative, original, kind, scale)
        for c, side in ((0, alternative), (1, original)):
            gap = stats.difference(arm, side, kind, scale, 40, 0)
            assert (found.low <= c <= found.high) == (gap.low <= 0 <= gap.high) or math.isinf(found.low)
            excluded[c] += not gap.low <= 0 <= gap.high
    assert all(10 < count < 50 for count in excluded.values())  # both happen, so that the equality can fail


def test_the_set_holds_all_and_only_what_the_test_does_not_reject() -> None:
    """A contrast is tested through another door: moving both ends by the same amount does not change whether 0 is held."""
    rng = np.random.default_rng(1)
    arm, alternative, original = (4 + 2 * mean + rng.random((4, 25)) for mean in (0.6, 0.0, 1.0))
    found = transfer(arm, alternative, original, "rating", RATING)
    for c in np.linspace(0, 1.5, 31):
        target = (1 - c) * alternative + c * original
        gap = stats.difference(arm, target, "rating", RATING, 40, 0)
        assert (found.low <= c <= found.high) == (gap.low <= 0 <= gap.high), c


# --- floors and ceilings -------------------------------------------------------------------------------------------------

WIDTH = 1.959964**2 / (20 + 1.959964**2)  # Wilson's upper limit for 0 of 20


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize(("kind", "scale"), [("share", SHARE), ("rating", RATING)])
def test_an_arm_without_the_trait_is_gone_and_one_with_it_remains(seeds: int, kind: str, scale: tuple[float, float]) -> None:
    """Worked by hand. c > 0: only the arm's upper and the original's lower limit count: c**2 = w**2 (1 + c**2).

    c = -k < 0: the alternative's upper and the original's lower: k**2 = w**2 ((1 + k)**2 + k**2).
    """
    never, always = full(0, seeds), full(scale[1], seeds)
    found = transfer(never, never, always, kind, scale)
    above = WIDTH / math.sqrt(1 - WIDTH**2)
    k = max(np.roots([1 - 2 * WIDTH**2, -2 * WIDTH**2, -(WIDTH**2)]))
    assert (found.value, *limits(found)) == pytest.approx((0.0, -k, above), abs=1e-5)
    assert call_transfer(found, Bounds()) == "gone"
    other = transfer(always, never, always, kind, scale)
    assert (other.value, *limits(other)) == pytest.approx((1.0, 1 - above, 1 + k), abs=1e-5)
    assert call_transfer(other, Bounds()) == "remains"
    assert "arm taken as 20 draws" in found.note


def test_a_third_of_the_error_rate_still_tells_20_scenarios_apart() -> None:
    for arm, call in ((full(0), "gone"), (full(1), "remains")):
        assert call_transfer(transfer(arm, full(0), full(1), "share", SHARE, 0.05 / 3), Bounds()) == call


def test_five_scenarios_do_not_tell_never_from_always() -> None:
    sides = full(0, scenarios=5), full(0, scenarios=5), full(1, scenarios=5)
    assert call_transfer(transfer(*sides, "share", SHARE), Bounds()) == "unresolved"


@pytest.mark.parametrize("arm", [0, 1, 2])
def test_limits_without_variance_shrink_with_scenarios(arm: int) -> None:
    """The arm is at the floor, like the alternative in each score, or like the original in each score."""
    rng, widths = np.random.default_rng(0), []
    for scenarios in (20, 80, 320):
        alternative, original = shares(rng, (0.2, 0.8), scenarios=scenarios)
        found = transfer([0 * alternative, alternative, original][arm], alternative, original, "share", SHARE)
        widths.append(found.high - found.low)
        assert found.low < found.value < found.high and math.isfinite(found.high - found.low)
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2] > 0.01


def test_one_reply_more_or_less_changes_the_limits_little() -> None:
    never, one = full(0), full(0)
    one[1, 4] = 1
    for alpha in (0.05, 0.05 / 3):
        exact, near = (transfer(arm, never, full(1), "share", SHARE, alpha) for arm in (never, one))
        assert near.low == pytest.approx(exact.low, abs=0.06) and near.high == pytest.approx(exact.high, abs=0.06)


def test_equal_ratings_take_their_dispersion_from_the_sides_that_vary() -> None:
    rng, never = np.random.default_rng(4), full(0, scenarios=30)
    narrow, wide = 2 + rng.random((3, 30)), np.where(rng.random((3, 30)) < 0.25, 10.0, 0.0)
    assert call_transfer(transfer(never, never, narrow, "rating", RATING), Bounds()) == "gone"
    assert call_transfer(transfer(never, never, wide, "rating", RATING), Bounds()) == "unresolved"


@pytest.mark.parametrize("scenarios", range(20, 30))
def test_equal_ratings_have_no_variance_by_rounding(scenarios: int) -> None:
    arm, alternative, original = (full(rating, 1, scenarios) for rating in (3.3, 0.7, 9.1))
    found = transfer(arm, alternative, original, "rating", RATING)
    assert found.high - found.low > 0.3 and "original taken as" in found.note


def test_ratings_at_the_ends_of_their_scale_have_the_limits_of_shares() -> None:
    sides = shares(np.random.default_rng(5), (0.3, 0.1, 0.9), seeds=1, scenarios=30)
    rated = transfer(*(10 * side for side in sides), "rating", RATING)
    assert limits(rated) == limits(transfer(*sides, "share", SHARE))


# --- no gap --------------------------------------------------------------------------------------------------------------


def test_without_a_gap_there_are_no_limits_and_no_call() -> None:
    alternative, original = shares(np.random.default_rng(2), (0.3, 0.35))
    for arm in (full(0), full(1), alternative):
        found = transfer(arm, alternative, original, "share", SHARE)
        assert limits(found) == (-math.inf, math.inf) and "not shown to differ" in found.note
        assert call_transfer(found, Bounds()) == "unresolved"
    equal = transfer(full(1), full(0), full(0), "share", SHARE)
    assert math.isnan(equal.value) and limits(equal) == (-math.inf, math.inf)


def test_the_gap_is_the_difference_at_the_same_error_rate() -> None:
    alternative, original = shares(np.random.default_rng(2), (0.2, 0.8))
    found = transfer(original, alternative, original, "share", SHARE, 0.01)
    assert found.gap == stats.difference(original, alternative, "share", SHARE, 2000, 0, alpha=0.01)
    assert found.gap.low < stats.difference(original, alternative, "share", SHARE, 2000, 0).low


@pytest.mark.parametrize(
    ("levels", "smallest", "wanted"),
    [((0.9, 0.1), 0.1, "higher"), ((0.1, 0.9), 0.1, "lower"), ((0.0, 0.0), 0.3, "same"), ((0.0, 0.0), 0.1, "unresolved")],
)
def test_there_is_something_to_diff_where_the_levels_differ(levels: tuple[float, float], smallest: float, wanted: str) -> None:
    original, alternative = shares(np.random.default_rng(6), (levels[0], levels[1])) if sum(levels) else (full(0), full(0))
    assert differs(original, alternative, "share", SHARE, smallest) == wanted


# --- invariances ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["share", "rating"])
def test_naming_the_sides_or_the_scale_otherwise_changes_nothing(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arm, alternative, original = shares(rng, (0.5, 0.1, 0.9))
    if kind == "rating":
        arm, alternative, original = (0.7 * side + 0.3 * rng.random(side.shape) for side in (arm, alternative, original))
    found = transfer(arm, alternative, original, kind, SHARE)
    swapped = transfer(arm, original, alternative, kind, SHARE)
    assert limits(swapped) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-4)
    flipped = transfer(1 - arm, 1 - alternative, 1 - original, kind, SHARE)
    assert limits(flipped) == pytest.approx(limits(found), abs=1e-4)
    rows, columns = rng.permutation(3), rng.permutation(20)
    mixed = (side[rows][:, columns] for side in (arm, alternative, original))
    assert limits(transfer(*mixed, kind, SHARE)) == pytest.approx(limits(found), abs=1e-4)
    if kind == "rating":
        rated = transfer(10 * arm, 10 * alternative, 10 * original, kind, RATING)
        assert limits(rated) == pytest.approx(limits(found), abs=1e-4)


def test_a_missing_scenario_is_left_out_on_all_sides() -> None:
    sides = shares(np.random.default_rng(8), (0.5, 0.1, 0.9))
    shorter = [side[:, :19] for side in sides]
    sides[0][:, 19] = np.nan
    found = transfer(sides[0], sides[1], sides[2], "share", SHARE)
    assert found.scenarios == 19
    assert limits(found) == pytest.approx(limits(transfer(*shorter, "share", SHARE)))


def test_one_row_serves_every_seed() -> None:
    arm, alternative, original = shares(np.random.default_rng(8), (0.5, 0.1, 0.9))
    one = transfer(arm, alternative[:1], original, "share", SHARE)
    assert limits(one) == limits(transfer(arm, np.repeat(alternative[:1], 3, axis=0), original, "share", SHARE))


def tables(seeds: int, scenarios: int) -> st.SearchStrategy[Cells]:
    """Three sides of this shape whose scores are often equal and sometimes missing."""
    score = st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.0, math.nan])
    return st.lists(score, min_size=3 * seeds * scenarios, max_size=3 * seeds * scenarios).map(
        lambda found: np.reshape(found, (3, seeds, scenarios))
    )


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 8)).flatmap(lambda shape: tables(*shape)), st.sampled_from(["share", "rating"])
)
def test_any_scores_give_limits_around_the_estimate(sides: Cells, kind: str) -> None:
    assume(not np.isnan(sides).any(axis=0).all())
    found = transfer(*sides, kind, SHARE)
    assert found.low < found.high
    if math.isnan(found.value):
        assert limits(found) == (-math.inf, math.inf)
    else:
        assert found.low < found.value < found.high
    if math.isfinite(found.high - found.low):  # limits rest on a gap that is shown
        assert not found.gap.low <= 0 <= found.gap.high


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ((full(0, 2), full(0, 3), full(1, 3)), "arm has 2 seeds, alternative 3, original 3"),
        ((full(0), full(0), full(1, scenarios=9)), "arm has 20 scenarios, alternative 20, original 9"),
        ((full(0, scenarios=9), full(0), full(1)), "arm has 9 scenarios, alternative 20, original 20"),
        ((full(2), full(0), full(1)), "arm reaches from 2.0 to 2.0, outside the scale"),
        ((full(math.nan), full(0), full(1)), "arm holds no valid score"),
    ],
)
def test_sides_that_do_not_pair_are_refused(sides: tuple[Cells, Cells, Cells], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        transfer(*sides, "share", SHARE)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_an_error_rate_outside_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        transfer(full(0), full(0), full(1), "share", SHARE, alpha)


# --- calls ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.7, 1.4, "remains"),
        (2 / 3, 1.4, "unresolved"),  # the bound itself is not above it
        (0.6, 1.1, "unresolved"),
        (-0.5, 0.3, "gone"),
        (-0.5, 1 / 3, "unresolved"),
        (0.34, 0.66, "partial"),
        (0.3, 0.6, "unresolved"),
        (0.4, 0.7, "unresolved"),
        (-math.inf, math.inf, "unresolved"),
        (-math.inf, 0.2, "gone"),
    ],
)
def test_calls_at_the_bounds(low: float, high: float, wanted: str) -> None:
    found = Transfer((low + high) / 2, low, high, Interval(1, 0.9, 1, "", ""), 3, 20, "")
    assert call_transfer(found, Bounds()) == wanted


def test_other_bounds_give_other_calls_and_crossed_ones_are_refused() -> None:
    found = Transfer(0.5, 0.4, 0.6, Interval(1, 0.9, 1, "", ""), 3, 20, "")
    assert [call_transfer(found, Bounds(*each)) for each in ((0.7, 0.8), (0.1, 0.3), (0.5, 0.5))] == [
        "gone",
        "remains",
        "unresolved",
    ]
    for bad in ((0.7, 0.3), (math.nan, 0.5), (0.1, math.inf)):
        with pytest.raises(ValueError, match="bounds must be finite numbers, gone at most remains"):
            Bounds(*bad)


# --- coverage ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        Sweep("share", 3, 20, 0.02, 0.6, 1.0, 1.0),
        Sweep("share", 1, 40, 0.3, 0.3, 0.0),
        Sweep("share", 3, 40, 0.0, 1.0, 0.5, planted=True),
        Sweep("rating", 3, 40, 0.02, 0.3, 0.2, 1.0),
        Sweep("rating", 5, 20, 0.02, 0.3, 1.0, 1.0),
    ],
    ids=str,
)
def test_the_limits_hold_the_true_transfer_and_calls_are_seldom_wrong(sweep: Sweep) -> None:
    """0.02: a standard error and a half at 300 diffs. A coverage of 1 would mean that the case cannot fail."""
    held, _, wrong = rates(sweep, 300, 3)
    assert 0.93 - 0.02 <= held < 1 and wrong <= 0.025 + 0.015


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["share", "rating"])
def test_without_a_true_gap_calls_are_seldom_made(kind: str) -> None:
    assert rates(Sweep(kind, 3, 20, 0.3, 0.0, 0.0, 0.5), 300, 4)[2] <= 0.05
