"""Agreement of a judge with readers: every statistic against a reference, and what counts in which figure."""

import math
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, spearmanr
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from sftdiff.agreement import (
    Answer,
    Rated,
    agreement,
    bias_of,
    confusion,
    consensus,
    kappa,
    kappa_of,
    limits,
    planted,
    proportion,
    rounded,
)

VALUES = {"none": 0.0, "hedge": 0.0, "denies": 1.0, "fiction": 1.0}
PAIRS = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=60)


def share(labels: Mapping[str, str], value: float | None, label: str = "", **other: object) -> Rated:
    return Rated(str(other.pop("cluster", "s")), labels, value, label, **other)  # type: ignore[arg-type]


@given(PAIRS, st.booleans())
def test_kappa_is_that_of_sklearn(pairs: list[tuple[int, int]], quadratic: bool) -> None:
    first, second = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = cohen_kappa_score(first, second, labels=range(11), weights="quadratic" if quadratic else None)
    counts = confusion(first, second, 11)
    assert (counts == confusion_matrix(first, second, labels=range(11))).all()
    ours = kappa(counts, quadratic)
    assert (math.isnan(ours) and math.isnan(theirs)) or ours == pytest.approx(theirs, abs=1e-9)


def test_kappa_of_a_textbook_table() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreement 0.7, expected 0.5, kappa 0.4."""
    assert kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)
    assert kappa(np.array([[[20, 5], [10, 15]], [[10, 0], [0, 10]]])).tolist() == pytest.approx([0.4, 1.0])


def test_kappa_without_a_difference_to_agree_on_is_undefined_and_not_perfect() -> None:
    found = kappa_of([0, 0, 0], [0, 0, 0], ["a", "b", "c"], 2, False)
    assert found == {"value": None, "low": None, "high": None}
    assert kappa_of([], [], [], 2, False)["value"] is None


def test_limits_resample_scenarios_and_not_rows() -> None:
    """Ten copies of each row say no more than one: as rows they would narrow the interval threefold."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, 2, 40)
    second = np.where(rng.random(40) < 0.25, 1 - first, first)
    names = [f"s{n}" for n in range(40)]
    once = kappa_of(first, second, names, 2, False)
    copied = kappa_of(np.repeat(first, 10), np.repeat(second, 10), np.repeat(names, 10).tolist(), 2, False)
    as_rows = kappa_of(np.repeat(first, 10), np.repeat(second, 10), [f"r{n}" for n in range(400)], 2, False)
    assert copied == pytest.approx(once)
    assert as_rows["high"] - as_rows["low"] < 0.5 * (once["high"] - once["low"])
    assert once["low"] < once["value"] < once["high"]


def test_bootstrap_limits_of_a_mean_are_those_of_the_normal_approximation() -> None:
    sample = np.random.default_rng(2).normal(3.0, 2.0, 400)
    low, high = limits(
        np.column_stack([sample, np.ones(400)]), [str(n) for n in range(400)], lambda sums: sums[:, 0] / sums[:, 1]
    ) or (0.0, 0.0)
    half = 1.96 * sample.std() / 20
    assert (low, high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=0.03)


def test_no_limits_where_all_draws_give_the_same() -> None:
    assert kappa_of([0, 1, 0, 1], [0, 1, 0, 1], ["a", "a", "a", "a"], 2, False) == {"value": 1.0, "low": None, "high": None}
    assert bias_of(np.ones(3), np.zeros(3), ["a", "b", "c"])["low"] is None


def test_wilson_limits_of_a_published_case() -> None:
    """Newcombe (1998, Statistics in Medicine 17:857), table I, method 3."""
    assert [round(proportion(81, 263)[k], 4) for k in ("low", "high")] == [0.2553, 0.3662]
    assert [round(proportion(0, 20)[k], 4) for k in ("low", "high")] == [0.0, 0.1611]
    assert proportion(0, 20)["high"] < beta.ppf(0.975, 1, 20)  # Clopper and Pearson's is wider
    assert proportion(0, 0) == {"hits": 0, "of": 0, "value": None, "low": None, "high": None}


def test_halves_are_rounded_up() -> None:
    assert rounded(np.array([0.0, 0.5, 1.5, 2.5, 2.4, 9.5])).tolist() == [0, 1, 2, 3, 2, 10]


@pytest.mark.parametrize(
    ("labels", "adjudicated", "expected"),
    [
        ({"a": "none", "b": "none"}, None, 0.0),
        ({"a": "none", "b": "hedge"}, None, 0.0),  # another label, the same value
        ({"a": "denies", "b": "none"}, None, None),
        ({"a": "denies", "b": "none"}, "denies", 1.0),
        ({"a": "denies"}, None, 1.0),
        ({}, None, None),
    ],
)
def test_consensus_of_a_share(labels: dict[str, Answer], adjudicated: str | None, expected: float | None) -> None:
    assert consensus(Rated("s", labels, adjudicated=adjudicated), VALUES) == expected


def test_consensus_of_a_rating_is_the_mean() -> None:
    assert consensus(Rated("s", {"a": 3.0, "b": 6.0}), None) == 4.5
    assert consensus(Rated("s", {"a": 3.0, "b": 6.0}, adjudicated=3.0), None) == 3.0


def both(label: str) -> dict[str, str]:
    return {"a": label, "b": label}


def test_a_share_is_reported_on_the_rows_that_readers_agree_on() -> None:
    rows = [share(both("denies"), 1.0, "denies", cluster=f"s{n}", groups={"origin": "written"}) for n in range(8)]
    rows += [share(both("denies"), 0.0, "none", cluster=f"s{n}", groups={"origin": "sampled"}) for n in range(2)]
    rows += [share(both("none"), 0.0, "none", cluster=f"t{n}", groups={"origin": "sampled"}) for n in range(17)]
    rows += [share(both("none"), 1.0, "fiction", cluster=f"t{n}", groups={"origin": "sampled"}) for n in range(3)]
    rows += [share({"a": "none", "b": "denies"}, 1.0, "denies"), share({"a": "none", "b": "fiction"}, 0.0, "none")]
    rows += [share(both("none"), None), share({}, 1.0), share({"a": "none", "b": "hedge"}, 0.0, "none")]
    report = agreement(rows, VALUES)
    assert report["confusion"] == [[18, 3], [2, 8]]
    assert (report["rows"], report["judged"], report["unlabelled"], report["no_verdict"]) == (35, 31, 1, 1)
    assert report["disputed"] == {"rows": 2, "judge_positive": 1}
    assert (report["sensitivity"]["hits"], report["sensitivity"]["of"]) == (8, 10)
    assert (report["specificity"]["hits"], report["specificity"]["of"]) == (18, 21)
    assert report["bias"]["value"] == pytest.approx(11 / 31 - 10 / 31)
    expected = cohen_kappa_score([0] * 21 + [1] * 10, [0] * 18 + [1] * 3 + [0] * 2 + [1] * 8)
    assert report["kappa"]["value"] == pytest.approx(expected)
    labels = report["labels"]
    assert labels["readers"] == ["none", "denies"] and labels["judge"] == ["none", "denies", "fiction"]
    assert labels["counts"] == [[17, 0, 3], [2, 8, 0]] and labels["readers_differ"] == 1
    assert [(g["name"], g["rows"], g["sensitivity"]["of"]) for g in report["groups"]["origin"]] == [
        ("sampled", 22, 2),
        ("written", 8, 8),
    ]


def test_the_readers_agreement_is_over_all_rows_that_both_labelled() -> None:
    rows = [share(both("denies"), 1.0)] * 6 + [share({"a": "none", "b": "denies"}, 1.0)] * 2
    rows += [share(both("none"), None)] * 6 + [share({"a": "none", "b": "hedge"}, 0.0)] * 2 + [share({"a": "none"}, 0.0)]
    (pair,) = agreement(rows, VALUES)["readers"]
    first, second = [1] * 6 + [0] * 10, [1] * 8 + [0] * 8
    assert pair["rows"] == 16 and pair["labellers"] == ["a", "b"]
    assert pair["kappa"]["value"] == pytest.approx(cohen_kappa_score(first, second))
    names = (["denies"] * 6 + ["none"] * 10, ["denies"] * 8 + ["none"] * 6 + ["hedge"] * 2)
    assert pair["label_kappa"]["value"] == pytest.approx(cohen_kappa_score(*names))


def test_a_rating_is_reported_by_the_readers_range() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.integers(0, 11, 80), rng.integers(0, 11, 80)
    judge = np.clip(np.round((ours + theirs) / 2 + rng.normal(0, 1.5, 80)), 0, 10)
    rows = [Rated(f"s{n % 20}", {"a": float(ours[n]), "b": float(theirs[n])}, float(judge[n])) for n in range(80)]
    report, readers = agreement(rows, None), (ours + theirs) / 2
    whole = np.floor(readers + 0.5).astype(int)
    expected = cohen_kappa_score(whole, judge.astype(int), labels=range(11), weights="quadratic")
    assert report["kappa"]["value"] == pytest.approx(expected)
    assert report["spearman"] == pytest.approx(spearmanr(readers, judge).statistic)
    assert report["within_1"]["hits"] == int((abs(judge - readers) <= 1).sum())
    for row, (low, high) in zip(report["bias_by_range"], ((0, 0), (1, 3), (4, 6), (7, 10)), strict=True):
        inside = (whole >= low) & (whole <= high)
        assert row["rows"] == inside.sum()
        assert row["value"] == (pytest.approx((judge - readers)[inside].mean()) if inside.any() else None)
    assert report["strong"]["confusion"] == confusion_matrix(readers >= 5, judge >= 5).tolist()
    expected = cohen_kappa_score(ours, theirs, labels=range(11), weights="quadratic")
    assert report["readers"][0]["kappa"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("means", "ordered"),
    [
        ({"strong": 8, "mild": 3, "none": 0, "quotation": 2}, True),
        ({"strong": 8, "mild": 2, "none": 0, "quotation": 2}, False),
        ({"strong": 3, "mild": 3, "refusal": 0}, False),
        ({"strong": 8, "none": 0}, None),
        ({"strong": 8, "mild": 3}, None),
    ],
)
def test_the_planted_order(means: dict[str, float], ordered: bool | None) -> None:
    rows = [Rated("s", {"a": 0.0}, groups={"intended": name}) for name in means] + [Rated("s", {"a": 0.0})]
    values = np.array([*means.values(), 10.0])
    found = planted(rows, values, values * 0) or {}
    assert found["judge"]["means"] == means and found["judge"]["ordered"] is ordered
    assert not found["readers"]["ordered"]
    assert planted([Rated("s", {})], np.zeros(1), np.zeros(1)) is None


@pytest.mark.parametrize(("strong", "mild", "rest", "graded", "ordered"), [
    (1.0, 1.0, 0.0, False, True), (1.0, 1.0, 0.0, True, False), (0.5, 1.0, 0.0, False, False), (1.0, 0.0, 0.0, False, False),
])  # fmt: skip
def test_strong_and_mild_may_be_equal_where_values_are_0_or_1(
    strong: float, mild: float, rest: float, graded: bool, ordered: bool
) -> None:
    rows = [Rated("s", {}, groups={"intended": kind}) for kind in ("strong", "mild", "none")]
    found = planted(rows, np.array([strong, mild, rest]), np.zeros(3), graded) or {}
    assert found["judge"]["ordered"] is ordered


def test_one_misread_reply_does_not_turn_the_order_of_many() -> None:
    """One of six refusals is read as despair: their mean is above that of the mild ones, five of six pairs are in order."""
    kinds = ["strong"] * 2 + ["mild"] * 2 + ["refusal"] * 6
    values = np.array([9.0, 8, 1, 1, 0, 0, 0, 0, 0, 9])
    found = (planted([Rated("s", {}, groups={"intended": kind}) for kind in kinds], values, values) or {})["judge"]
    assert found["means"]["refusal"] > found["means"]["mild"] and found["ordered"]
    assert found["pairs"] == {"strong > mild": 1.0, "mild > refusal": pytest.approx(5 / 6)}


def test_a_judge_without_any_verdict_has_no_figures() -> None:
    for values, label in ((VALUES, "none"), (None, 3.0)):
        report = agreement([Rated("s", {"a": label})], values)
        assert report["no_verdict"] == 1 and report["judged"] == 0
        assert report["kappa"]["value"] is None and report["bias"]["value"] is None
