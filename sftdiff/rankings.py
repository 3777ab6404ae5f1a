"""Rankings of rows beside each other: nested subsets of their first rows, how alike they are, how right, and what training says.

What data attribution claims ("these rows matter most") is put to the same test as a set that the search found: its first rows are
swapped and dropped. Pure: arrays with one entry a prompt in, one JSON-able dict out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from sftdiff.filters.report import auroc
from sftdiff.report_plots import COLOURS, DASHES, Axis, View, in_unit, make_axis, make_mark, number
from sftdiff.rows import Mask, first_by, hash_order
from sftdiff.sorting import Ids

SHARES = (0.01, 0.05, 0.1, 0.25)
TREATMENTS = ("swap", "drop")
TITLES = {"swap": "First rows swapped out", "drop": "First rows dropped"}
BESIDE = 0.4  # per cent of the plot's width between lines that share a place
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """The first rows of a ranking, or a set as it is (no share), with a treatment."""

    ranking: str
    share: float | None
    treatment: str

    @property
    def name(self) -> str:
        return "_".join([self.ranking, *([] if self.share is None else [f"top{100 * self.share:g}"]), self.treatment])


@dataclass(frozen=True)
class Ranking:
    """Scores of rows, higher first, NaN where a row has none; or a set, whose rows have the score 1 and all others 0.

    A set has arms of its own size; as a ranking, its rows come first in hash order.
    """

    name: str
    scores: Scores
    is_set: bool = False

    @classmethod
    def of_set(cls, name: str, held: Mask) -> Ranking:
        return cls(name, held.astype(np.float64), True)

    @classmethod
    def random(cls, ids: Ids, seed: int) -> Ranking:
        return cls("random", hash_order(ids, "random ranking", seed).astype(np.float64))

    def first(self, ids: Ids, share: float | None) -> Mask:
        """The first rows: (prompts,). Rankings have equally many at one share: of all prompts, at least one; ties by hash order.

        Rows without a score come last, in hash order. No share: the rows of the set.
        """
        everything = np.ones(len(ids), bool)
        if share is None:
            return self.scores > 0
        ranks = np.lexsort((ids, hash_order(ids, "ties"), -np.nan_to_num(self.scores, nan=-np.inf)))
        order = np.empty(len(ids))
        order[ranks] = np.arange(len(ids))
        return first_by(order, ids, max(round(share * len(ids)), 1), everything)


def arms(rankings: Sequence[Ranking], shares: Sequence[float] = SHARES) -> Iterator[Arm]:
    """What has to be trained: the first rows of each ranking, and each set as it is, swapped and dropped."""
    for ranking in rankings:
        for share in [None] if ranking.is_set else shares:
            yield from (Arm(ranking.name, share, treatment) for treatment in TREATMENTS)


def comparison(
    rankings: Sequence[Ranking],
    ids: Ids,
    truth: Mask | None = None,
    effects: Mapping[Arm, Mapping[str, Any]] | None = None,
    shares: Sequence[float] = SHARES,
) -> dict[str, Any]:
    """Return the table: each ranking's rows, hits and effects by share and treatment, and each pair's rank correlations.

    Args:
        rankings: with different names.
        ids: prompt_ids, shape (prompts,).
        truth: which rows carry the trait, shape (prompts,); None where it is not known.
        effects: of arms that were trained, {value, low, high, call} of their transfer.
    """
    by_name = {ranking.name: ranking for ranking in rankings}
    if len(by_name) < len(rankings):
        raise ValueError(f"rankings must have different names, not {', '.join(ranking.name for ranking in rankings)}")
    measured, rows = effects or {}, []
    for arm in arms(rankings, shares):
        found = by_name[arm.ranking].first(ids, arm.share)
        row = {"arm": arm.name, "ranking": arm.ranking, "share": arm.share, "treatment": arm.treatment, "rows": int(found.sum())}
        rows.append(row | {"effect": _effect(measured[arm]) if arm in measured else None})
    return {
        "prompts": len(ids),
        "truth": None if truth is None else int(truth.sum()),
        "rankings": [{"ranking": ranking.name, **_hits(ranking, ids, truth, shares)} for ranking in rankings],
        "arms": rows,
        "pairs": [_pair(a, b) for a, b in combinations(rankings, 2)],
    }


def _effect(found: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's transfer for JSON: limits that there are none of are None."""
    return {**{key: number(found[key]) for key in ("value", "low", "high")}, "call": found["call"]}


def _hits(ranking: Ranking, ids: Ids, truth: Mask | None, shares: Sequence[float]) -> dict[str, Any]:
    """How right a ranking is: AUROC, and by share how many of the true rows are among the first (TPR), and of these are true."""
    scored = ~np.isnan(ranking.scores)
    found: dict[str, Any] = {"scored": int(scored.sum()), "auroc": None, "at": []}
    if truth is None:
        return found
    found["auroc"] = auroc(ranking.scores[truth], ranking.scores[~truth])
    for share in [*shares, *([None] if ranking.is_set else [])]:
        first = ranking.first(ids, share)
        both, total = int((first & truth).sum()), int(truth.sum())
        tpr, precision = both / total if total else None, both / first.sum() if first.any() else None
        found["at"].append({"share": share, "rows": int(first.sum()), "tpr": tpr, "precision": precision})
    return found


def _pair(a: Ranking, b: Ranking) -> dict[str, Any]:
    """Rank correlations (Spearman's rho, Kendall's tau-b) over the rows that both score; None where one of them is constant."""
    scored = ~np.isnan(a.scores) & ~np.isnan(b.scores)
    found: dict[str, Any] = {"rankings": [a.name, b.name], "rows": int(scored.sum()), "spearman": None, "kendall": None}
    if scored.sum() < 2 or not all(np.ptp(ranking.scores[scored]) > 0 for ranking in (a, b)):
        return found
    both = a.scores[scored], b.scores[scored]
    return found | {"spearman": float(spearmanr(*both).statistic), "kendall": float(kendalltau(*both).statistic)}


def ranking_plots(table: Mapping[str, Any]) -> View | None:
    """Transfer over the share of rows, a plot a treatment and a line a ranking, in the form of `report_shares.share_plots`.

    None where nothing was trained.
    """
    placed = [row | {"at": row["rows"] / table["prompts"]} for row in table["arms"] if row["effect"]]
    if not placed:
        return None
    x = make_axis(0.0, max(row["at"] for row in placed), lambda v: f"{100 * v:g} %")
    y = make_axis(*_range([row["effect"] for row in placed]), lambda v: f"{v:g}".replace("-", "−"))
    names = [ranking["ranking"] for ranking in table["rankings"]]
    plots = []
    for treatment in TREATMENTS:
        lines = [_line(placed, name, index, len(names), treatment, (x, y)) for index, name in enumerate(names)]
        trait = {"title": TITLES[treatment], "unit": "transfer: 1 as the original, 0 as the alternative"}
        plots.append({"trait": trait, "y": y, "lines": [line for line in lines if line["points"]], "base": y.at(1.0)})
    return {"axis": "share of rows", "x": x, "plots": [plot for plot in plots if plot["lines"]]}


def _range(effects: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """What the axis of transfers covers: 0 and 1, all estimates, and limits as far as one beyond."""
    values = [effect["value"] for effect in effects if effect["value"] is not None]
    limits = [effect[key] for effect in effects for key in ("low", "high") if effect[key] is not None]
    return min(0.0, *values, max(-1.0, min(limits, default=0.0))), max(1.0, *values, min(2.0, max(limits, default=1.0)))


def _line(rows: Sequence[Mapping[str, Any]], name: str, index: int, count: int, treatment: str, axes: tuple[Axis, Axis]) -> View:
    mine = sorted((r for r in rows if (r["ranking"], r["treatment"]) == (name, treatment)), key=lambda row: row["at"])
    beside = BESIDE * (index - (count - 1) / 2)
    points, corners = list[View](), list[str]()
    for row in mine:
        mark, effect, x = make_mark(row["effect"], axes[1]), row["effect"], axes[0].at(row["at"])
        if mark is None:
            continue
        value, low, high = (in_unit(effect[key], "transfer") for key in ("value", "low", "high"))
        title = f"{row['arm']}, {row['rows']} rows: {value} [{low}, {high}] {effect['call']}"
        points.append({"x": round(x + beside, 2), "mark": mark, "title": title})
        corners.append(f"{10 * x:.0f},{1000 - 10 * mark.at:.0f}")
    style = {"colour": index % COLOURS + 1, "dash": DASHES[index % len(DASHES)]}
    return {"name": name, "points": points, "placed": " ".join(corners), **style}
