"""Rankings of rows put to the test: their arms, how right and how alike they are, and what training says of their first rows.

What data attribution claims ("these rows matter most") is put to the same test as a set that a search found: its first rows are
swapped and dropped, beside as many random rows. Pure: arrays with one entry a prompt in, JSON-able dicts out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from sftdiff.filters.report import auroc
from sftdiff.report_plots import COLOURS, Axis, View, in_unit, make_axis, make_mark, number, tick_label
from sftdiff.rows import Mask

TREATMENTS = ("swap", "drop")
RANDOM, SUBSET = "random", "subset"  # what is treated beside the rankings' first rows
BESIDE = 0.35  # per cent of the plot's width between lines that share a place
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """The first rows of a ranking with a treatment. No share: the given subset, or as many random rows."""

    ranking: str
    share: float | None
    treatment: str

    @property
    def name(self) -> str:
        if self.share is not None:
            return f"{self.ranking}_top{100 * self.share:g}_{self.treatment}"
        return f"{self.ranking}{'_like_subset' if self.ranking == RANDOM else ''}_{self.treatment}"


def arms(rankers: Iterable[str], shares: Sequence[float], subset: bool) -> Iterator[Arm]:
    """What has to be trained: the first rows of each ranking and of a random one, and the subset beside random rows."""
    places = [(ranking, share) for ranking in (*rankers, RANDOM) for share in shares]
    for ranking, share in [*places, *([(SUBSET, None), (RANDOM, None)] if subset else [])]:
        yield from (Arm(ranking, share, treatment) for treatment in TREATMENTS)


def rows_of(share: float, prompts: int) -> int:
    """Return how many rows a share of all prompts is: at least one."""
    return max(round(share * prompts), 1)


def hits(found: Sequence[Mask], truth: Mask | None) -> dict[str, Any]:
    """How many rows are treated, how many of the true rows are among them (TPR), and of these are true: means over masks.

    `found` has one mask a training seed, shape (prompts,): random rows are others with each seed.
    """
    rows = fmean(int(mask.sum()) for mask in found)
    both = None if truth is None else fmean(int((mask & truth).sum()) for mask in found)
    total = 0 if truth is None else int(truth.sum())
    return {"rows": rows, "tpr": both / total if total and both is not None else None,
            "precision": both / rows if rows and both is not None else None}  # fmt: skip


def rightness(scores: Mapping[str, Scores], truth: Mask | None) -> dict[str, Any]:
    """Return ranking -> how many rows it scores, how many different scores there are, and its AUROC where the truth is known."""
    found = {}
    for name, own in scores.items():
        known = own[~np.isnan(own)]
        area = None if truth is None else auroc(own[truth], own[~truth])
        found[name] = {"scored": len(known), "distinct": len(np.unique(known)), "auroc": area}
    return found


def correlations(scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Rank correlations (Spearman's rho, Kendall's tau-b) of pairs over the rows that both score; None where one is constant."""
    made = []
    for (first, a), (second, b) in combinations(scores.items(), 2):
        both = ~np.isnan(a) & ~np.isnan(b)
        found: dict[str, Any] = {"rankings": [first, second], "rows": int(both.sum()), "spearman": None, "kendall": None}
        if both.sum() > 1 and all(np.ptp(own[both]) > 0 for own in (a, b)):
            found["spearman"] = float(spearmanr(a[both], b[both]).statistic)
            found["kendall"] = float(kendalltau(a[both], b[both]).statistic)
        made.append(found)
    return made


def effect_plot(result: Mapping[str, Any]) -> View | None:
    """Effects over the share of rows: a line a ranking and treatment, random rows as grey bands. None where nothing is measured.

    Line and band coordinates are in a box of 1000 x 1000; marks are per cent.
    """
    held = [row | {"at": row["rows"] / result["prompts"]} for row in result["arms"] if row["effect"]]
    if not held:
        return None
    kind, gap = result["kind"], number(result["gap"]["value"]) if result["gap"] else None
    x = make_axis(0.0, max(row["at"] for row in held), lambda v: f"{100 * v:g} %")
    ends = [number(row["effect"][key]) for row in held for key in ("value", "low", "high")] + [0.0, None if gap is None else -gap]
    known = [end for end in ends if end is not None]
    y = make_axis(min(known), max(known), tick_label(kind, True))
    names = list(dict.fromkeys(row["ranking"] for row in held if row["ranking"] != RANDOM))
    pairs = [(name, treatment) for name in (RANDOM, *names) for treatment in TREATMENTS]
    lines = [_line(held, pair, place, (len(pairs), names), kind, (x, y)) for place, pair in enumerate(pairs)]
    base = None if gap is None else y.at(-gap)
    return {"x": x, "y": y, "lines": [line for line in lines if line["points"]], "zero": y.at(0.0), "base": base}


def _line(
    held: Sequence[Mapping[str, Any]], pair: tuple[str, str], place: int, among: tuple[int, Sequence[str]], kind: str,
    axes: tuple[Axis, Axis],
) -> View:  # fmt: skip
    (name, treatment), (count, names), (x, y) = pair, among, axes
    own = sorted((r for r in held if (r["ranking"], r["treatment"]) == pair), key=lambda row: row["at"])
    points, beside = list[View](), BESIDE * (place - (count - 1) / 2)
    corners: dict[str, list[str]] = {"value": [], "low": [], "high": []}
    for row in own:
        mark = make_mark(row["effect"], y)
        if mark is None:
            continue
        value, low, high = (in_unit(row["effect"][key], kind, True) for key in ("value", "low", "high"))
        title = f"{row['arm']}, {row['rows']:g} rows: {value} [{low}, {high}]"
        points.append({"x": round(x.at(row["at"]) + beside, 2), "mark": mark, "title": title})
        for key in corners:
            at = y.at(row["effect"][key])
            corners[key].append(f"{10 * x.at(row['at']):.0f},{1000 - 10 * at:.0f}")
    band = " ".join([*corners["low"], *reversed(corners["high"])]) if name == RANDOM and len(points) > 1 else ""
    colour = 0 if name == RANDOM else names.index(name) % COLOURS + 1
    return {"name": name, "treatment": treatment, "points": points, "placed": " ".join(corners["value"]), "band": band,
            "colour": colour, "dash": "" if treatment == "swap" else "7 5"}  # fmt: skip
