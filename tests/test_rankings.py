"""Rankings beside each other: nested subsets, rank correlations, hits, the table and its plot."""

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_example import example

from sftdiff.rankings import SHARES, Arm, Ranking, arms, comparison, ranking_plots
from sftdiff.report_html import render_report

IDS = np.arange(1, 201, dtype=np.uint64) * np.uint64(7919)


def ranking(name: str, scores: Any) -> Ranking:
    return Ranking(name, np.asarray(scores, np.float64))


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.5, math.nan, -3.0]), min_size=1, max_size=60),
    st.lists(st.floats(0, 1), min_size=2, max_size=4),
)
@settings(deadline=None)
def test_first_rows_are_nested_equally_many_for_all_and_the_highest(scores: list[float], shares: list[float]) -> None:
    ids, found = IDS[: len(scores)], ranking("a", scores)
    masks = [found.first(ids, share) for share in sorted(shares)]
    assert [int(mask.sum()) for mask in masks] == [max(round(share * len(ids)), 1) for share in sorted(shares)]
    for smaller, larger in pairwise(masks):
        assert not (smaller & ~larger).any()
    ranked = np.nan_to_num(found.scores, nan=-np.inf)
    for mask in masks:
        assert mask.all() or ranked[mask].min() >= ranked[~mask].max()
    order = np.random.default_rng(0).permutation(len(ids))
    again = ranking("a", np.array(scores)[order]).first(ids[order], sorted(shares)[0])
    assert (again == masks[0][order]).all()  # whatever the order of the rows


def test_ties_are_broken_by_chance_and_not_by_prompt_id() -> None:
    first = ranking("a", np.zeros(200)).first(IDS, 0.5)
    assert not first[:100].all()
    assert 30 < first[:100].sum() < 70


def test_the_arms_are_first_rows_of_each_ranking_and_each_set_as_it_is() -> None:
    held = np.zeros(200, bool)
    held[[3, 5, 8]] = True
    found = Ranking.of_set("search", held)
    names = [arm.name for arm in arms([ranking("bm25", IDS), found], (0.01, 0.25))]
    assert names == ["bm25_top1_swap", "bm25_top1_drop", "bm25_top25_swap", "bm25_top25_drop", "search_swap", "search_drop"]
    assert (found.first(IDS, None) == held).all()
    assert (found.first(IDS, 0.05) & held).sum() == 3
    assert found.first(IDS, 0.01).sum() == 2


def test_the_random_ranking_depends_on_its_seed_alone() -> None:
    first = Ranking.random(IDS, 0).first(IDS, 0.25)
    assert (Ranking.random(IDS[::-1], 0).first(IDS[::-1], 0.25) == first[::-1]).all()
    assert (Ranking.random(IDS, 1).first(IDS, 0.25) != first).any()


def test_rank_correlations_of_hand_worked_rankings() -> None:
    a = ranking("a", [1, 2, 3, 4, math.nan])
    b = ranking("b", [10, 30, 20, 40, 50])
    (pair,) = comparison([a, b], IDS[:5])["pairs"]
    assert pair == {
        **{"rankings": ["a", "b"], "rows": 4},
        **{"spearman": pytest.approx(1 - 6 * 2 / (4 * 15)), "kendall": pytest.approx((5 - 1) / 6)},
    }
    (constant,) = comparison([a, ranking("c", [7, 7, 7, 7, 8])], IDS[:5])["pairs"]
    assert (constant["rows"], constant["spearman"], constant["kendall"]) == (4, None, None)


def test_hits_of_a_hand_worked_ranking() -> None:
    """Of 20 rows 4 are true: those with the 1st, 2nd, 6th and last score."""
    scores = np.arange(20, 0, -1.0)
    truth = np.zeros(20, bool)
    truth[[0, 1, 5, 19]] = True
    table = comparison([ranking("a", scores), Ranking.of_set("set", truth)], IDS[:20], truth, shares=(0.05, 0.25, 0.5))
    (first, found) = table["rankings"]
    assert first["at"] == [
        {"share": 0.05, "rows": 1, "tpr": 0.25, "precision": 1.0},
        {"share": 0.25, "rows": 5, "tpr": 0.5, "precision": 0.4},
        {"share": 0.5, "rows": 10, "tpr": 0.75, "precision": 0.3},
    ]
    assert first["auroc"] == pytest.approx((16 + 16 + 13 + 0) / (4 * 16))
    assert found["at"][-1] == {"share": None, "rows": 4, "tpr": 1.0, "precision": 1.0}
    assert (table["prompts"], table["truth"]) == (20, 4)
    unknown = comparison([ranking("a", scores)], IDS[:20])
    assert (unknown["truth"], unknown["rankings"]) == (None, [{"ranking": "a", "scored": 20, "auroc": None, "at": []}])


def test_a_truth_without_a_true_row_has_no_rates() -> None:
    (found,) = comparison([ranking("a", [1, 2])], IDS[:2], np.zeros(2, bool))["rankings"]
    assert found["auroc"] is None
    assert {at["tpr"] for at in found["at"]} == {None}


def measured() -> dict[str, Any]:
    """Two rankings, a set and a random one: swapping falls with the share for one of them, and one arm was not trained."""
    rng, held = np.random.default_rng(0), np.zeros(200, bool)
    held[:10] = True
    rankings = [ranking("bm25", rng.random(200)), Ranking.random(IDS, 0), Ranking.of_set("search", held)]
    effects = {}
    for arm in arms(rankings):
        value = 0.1 if arm.ranking == "search" and arm.treatment == "swap" else 1.0
        effects[arm] = {"value": value, "low": value - 0.2, "high": value + 0.2, "call": "gone" if value < 0.5 else "remains"}
    del effects[Arm("bm25", SHARES[0], "drop")]
    effects[Arm("bm25", SHARES[0], "swap")] |= {"low": -math.inf, "high": math.inf, "call": "unresolved"}
    return comparison(rankings, IDS, held, effects)


def test_the_table_has_the_effect_of_each_arm_that_was_trained() -> None:
    table = json.loads(json.dumps(measured(), allow_nan=False))
    rows = {row["arm"]: row for row in table["arms"]}
    assert len(rows) == 2 * (4 + 4 + 1)
    assert rows["bm25_top1_drop"]["effect"] is None
    assert rows["search_swap"] | {"effect": None} == {
        **{"arm": "search_swap", "ranking": "search", "share": None, "treatment": "swap", "rows": 10, "effect": None},
    }
    assert rows["search_swap"]["effect"]["call"] == "gone"
    assert [rows[f"random_top{share}_swap"]["rows"] for share in ("1", "5", "10", "25")] == [2, 10, 20, 50]


def test_the_plot_has_a_line_for_each_ranking_and_treatment() -> None:
    found = ranking_plots(measured())
    assert found is not None
    assert [plot["trait"]["title"] for plot in found["plots"]] == ["First rows swapped out", "First rows dropped"]
    swap, drop = ({line["name"]: line for line in plot["lines"]} for plot in found["plots"])
    assert {name: len(line["points"]) for name, line in swap.items()} == {"bm25": 4, "random": 4, "search": 1}
    assert {name: len(line["points"]) for name, line in drop.items()} == {"bm25": 3, "random": 4, "search": 1}
    (point,) = swap["search"]["points"]
    assert point["title"] == "search_swap, 10 rows: 0.10 [−0.10, 0.30] gone"
    y = found["plots"][0]["y"]
    assert (point["mark"].at, point["mark"].low, point["mark"].high) == tuple(map(y.at, (0.1, -0.1, 0.3)))
    assert swap["bm25"]["points"][0]["mark"].low is None
    assert len({line["colour"] for line in swap.values()}) == 3
    assert ranking_plots(comparison([ranking("a", IDS)], IDS)) is None


def test_two_rankings_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="different names, not a, a"):
        comparison([ranking("a", [1]), ranking("a", [2])], IDS[:1])


def test_the_report_draws_the_plot_as_it_draws_its_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftdiff.report_html.share_plots", lambda report: ranking_plots(measured()))
    page = render_report(example())
    assert "First rows dropped" in page
    assert "search_swap, 10 rows: 0.10 [−0.10, 0.30] gone" in page
    assert page.count("bm25_top1_swap, 2 rows: 1.00 [–, –] unresolved") == 1
