"""Interpolation curves: which sweeps have one, where its points stand, and that the page shows it."""

import copy
from typing import Any

import pytest
from report_example import example

from sftdiff.report_html import render_report
from sftdiff.report_shares import number_axis, share_plots

SHARES = ("0.1", "0.25", "0.5", "1")


def swept(shares: tuple[str, ...] = SHARES, treatments: tuple[str, ...] = ("swap", "drop")) -> dict[str, Any]:
    """The example report with arms that differ in a share and a treatment; swap falls with the share, drop stays."""
    report = copy.deepcopy(example())
    untrained = next(arm for arm in report["arms"] if arm["untrained"])
    arms, levels = [untrained], [row for row in report["levels"] if row["arm"] == untrained["id"]]
    for treatment in treatments:
        for share in shares:
            arm = f"prompt_subset.share={share} prompt_subset.treatment={treatment}"
            axes = {"prompt_subset.share": share, "prompt_subset.treatment": treatment}
            arms.append(untrained | {"id": arm, "axes": axes, "untrained": False, "trained_here": True, "seeds": [0]})
            for trait in report["traits"]:
                value = trait["scale"][1] * 0.5 * (1 - float(share) if treatment == "swap" else 1)
                row = {"arm": arm, "trait": trait["name"], "value": value, "low": 0.8 * value, "high": 1.2 * value}
                levels.append(levels[0] | row | {"interpreted": True, "note": None, "per_seed": {"0": value}})
    return report | {"arms": arms, "levels": levels, "differences": []}


def test_a_share_with_three_values_is_an_axis() -> None:
    assert number_axis(swept()["arms"]) == "prompt_subset.share"
    assert number_axis(swept(SHARES[:2])["arms"]) is None
    assert share_plots(swept(SHARES[:2])) is None
    assert number_axis(example()["arms"]) is None
    words = [{"axes": {"filter": name}, "trained_here": True} for name in ("none", "keyword", "0.5")]
    assert number_axis(words) is None


def test_there_is_a_line_for_each_other_choice_and_a_point_for_each_share() -> None:
    view = share_plots(swept())
    assert view is not None and len(view["plots"]) == 4
    for plot in view["plots"]:
        assert [line["name"] for line in plot["lines"]] == ["prompt_subset.treatment=swap", "prompt_subset.treatment=drop"]
        swap, drop = ([p["mark"].at for p in line["points"]] for line in plot["lines"])
        assert swap == sorted(swap, reverse=True) and swap[-1] == 0 and len(swap) == len(SHARES)
        assert len(set(drop)) == 1 and drop[0] > swap[0]
        assert all(p["mark"].low <= p["mark"].at <= p["mark"].high for line in plot["lines"] for p in line["points"])
        xs = [float(pair.split(",")[0]) for pair in plot["lines"][0]["placed"].split()]
        assert xs == pytest.approx([1000 * float(share) for share in SHARES])


def test_an_arm_without_a_value_leaves_a_gap() -> None:
    report = swept()
    gone = "prompt_subset.share=0.25 prompt_subset.treatment=swap"
    report["levels"] = [row | ({"value": None} if row["arm"] == gone else {}) for row in report["levels"]]
    view = share_plots(report)
    assert view is not None
    assert [len(line["points"]) for line in view["plots"][0]["lines"]] == [3, 4]


def test_the_page_shows_the_curves_and_escapes_names() -> None:
    page = render_report(swept(treatments=("swap", "<b>drop</b>")))
    assert "Levels over prompt_subset.share" in page and "#shares" in page
    assert "<b>drop</b>" not in page and "&lt;b&gt;drop&lt;/b&gt;" in page
    assert "Levels over" not in render_report(example())
