"""How far a judge agrees with people who labelled the same replies, and they with each other. Pure functions.

Rows of one scenario resemble each other, so the bootstrap draws whole scenarios: 95 % percentile limits of the statistic over
`RESAMPLES` draws of as many scenarios as there are. Where all draws give the same there are no limits (None), not limits of
width 0. Sensitivity and specificity have Wilson limits, which take rows as independent.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, spearmanr

from sftdiff.traits.emotion import STRONG_FROM

Answer = float | str  # a rating, or a label of a share
Floats = NDArray[np.float64]
RESAMPLES = 2_000
TOP = 10  # of a rating
RANGES = ((0, 0), (1, 3), (4, 6), (7, 10))  # of rounded ratings
CLOSE = 1.0  # rating points
BINARY, RATINGS = 2, TOP + 1  # numbers of categories


@dataclass(frozen=True)
class Rated:
    """A reply with the labels of people and the verdict of a judge.

    `labels`: labeller -> answer; `adjudicated`: the answer that holds where they differ; `cluster`: what it has in common with
    others, its scenario. `value` and `label` are the judge's; no value: the judge has no verdict.
    """

    cluster: str
    labels: Mapping[str, Answer]
    value: float | None = None
    label: str = ""
    adjudicated: Answer | None = None
    groups: Mapping[str, str] | None = None  # e.g. {"origin": "written", "intended": "mild"}


def kappa(counts: NDArray[Any], quadratic: bool = False) -> Any:
    """Return Cohen's kappa of confusion counts, shape (..., k, k); NaN where both sides always say one and the same.

    Quadratic: disagreement weighs by its squared distance (Cohen 1968, Psychological Bulletin 70:213).
    """
    counts = np.asarray(counts, dtype=np.float64)
    places = np.arange(counts.shape[-1])
    apart = (places[:, None] - places) ** 2 if quadratic else (places[:, None] != places).astype(np.float64)
    total = counts.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = counts.sum(axis=-1)[..., :, None] * counts.sum(axis=-2)[..., None, :] / total[..., None, None]
        return 1 - (counts * apart).sum(axis=(-2, -1)) / (expected * apart).sum(axis=(-2, -1))


def confusion(first: Sequence[int] | NDArray[Any], second: Sequence[int] | NDArray[Any], size: int) -> NDArray[np.int64]:
    """Count pairs of categories 0..size-1, shape (size, size): rows are `first`."""
    pairs = np.asarray(first, dtype=np.int64) * size + np.asarray(second, dtype=np.int64)
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def limits(parts: Floats, clusters: Sequence[str], statistic: Callable[[Floats], Any]) -> tuple[float, float] | None:
    """Return bootstrap limits of a statistic of sums over rows; None where all draws give the same.

    `parts` has shape (rows, m): what each row adds; `statistic` takes sums of shape (draws, m) and gives shape (draws,).
    """
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    number = int(codes.max()) + 1
    sums = np.zeros((number, parts.shape[1]))
    np.add.at(sums, codes, parts)
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    found = np.asarray(statistic(drawn @ sums))
    found = found[np.isfinite(found)]
    if not found.size or np.ptp(found) < 1e-12:
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def kappa_of(
    first: Sequence[int] | NDArray[Any], second: Sequence[int] | NDArray[Any], clusters: Sequence[str], size: int, quadratic: bool
) -> dict[str, Any]:
    """Return kappa of two raters of the same rows, with its bootstrap limits."""
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    if not len(first):
        return {"value": None, "low": None, "high": None}
    parts = np.eye(size * size)[first * size + second]
    found = limits(parts, clusters, lambda sums: kappa(sums.reshape(-1, size, size), quadratic))
    return _with_limits(kappa(confusion(first, second, size), quadratic), found)


def proportion(hits: int, of: int) -> dict[str, Any]:
    """Return a share with Wilson's score limits (Wilson 1927, JASA 22:209); None where there are no rows."""
    if not of:
        return {"hits": 0, "of": 0, "value": None, "low": None, "high": None}
    found = binomtest(hits, of).proportion_ci(method="wilson")
    return {"hits": hits, "of": of, "value": hits / of, "low": float(found.low), "high": float(found.high)}


def bias_of(judge: Floats, readers: Floats, clusters: Sequence[str]) -> dict[str, Any]:
    """Return the judge's mean, the readers' mean, and their difference with bootstrap limits."""
    if not len(judge):
        return {"rows": 0, "judge": None, "readers": None, "value": None, "low": None, "high": None}
    gaps = judge - readers
    parts = np.column_stack([gaps, np.ones(len(gaps))])
    found = _with_limits(gaps.mean(), limits(parts, clusters, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1)))
    return {"rows": len(gaps), "judge": float(judge.mean()), "readers": float(readers.mean())} | found


def _with_limits(value: Any, found: tuple[float, float] | None) -> dict[str, Any]:
    value = float(value) if math.isfinite(value) else None
    low, high = (None, None) if found is None or value is None else found
    return {"value": value, "low": low, "high": high}


def rounded(ratings: Floats) -> NDArray[np.int64]:
    """Return ratings as whole numbers, halves up: numpy would round 0.5 down and 1.5 up."""
    return np.floor(ratings + 0.5).astype(np.int64)


def range_name(low: int, high: int) -> str:
    return f"{low}-{high}" if high > low else str(low)


def consensus(row: Rated, values: Mapping[str, float] | None) -> float | None:
    """Return what the readers say: `adjudicated` where there is one; else the mean rating, or the value on which all agree.

    `values`: label -> 0 or 1, of a share; None for a rating. Returns None where they differ, or nobody labelled the row.
    """
    if row.adjudicated is not None:
        return _value(row.adjudicated, values)
    found = [_value(answer, values) for answer in row.labels.values()]
    if values is None:
        return sum(found) / len(found) if found else None
    return found[0] if len(set(found)) == 1 else None


def _value(answer: Answer, values: Mapping[str, float] | None) -> float:
    return float(answer) if values is None else values[str(answer)]


def agreement(rows: Sequence[Rated], values: Mapping[str, float] | None) -> dict[str, Any]:
    """Return how a judge agrees with the readers, on the rows on which both have a value, and how the readers agree.

    `values` as in `consensus`. Rows on which the readers differ (shares alone) are in no figure about the judge: whichever answer
    one took, half of the readers would call it wrong. They are counted under "disputed", with what the judge says of them.
    """
    labelled = [row for row in rows if row.labels]
    known = [row for row in labelled if consensus(row, values) is not None]
    disputed = [row for row in labelled if consensus(row, values) is None]
    judged = [row for row in known if row.value is not None]
    report: dict[str, Any] = {
        "kind": "rating" if values is None else "share",
        "rows": len(rows),
        "unlabelled": len(rows) - len(labelled),
        "disputed": {"rows": len(disputed), "judge_positive": sum(row.value == 1 for row in disputed)},
        "no_verdict": len(known) - len(judged),
        "judged": len(judged),
        "scenarios": len({row.cluster for row in judged}),
        "readers": readers_agreement(rows, values),
    }
    judge, readers = _sides(judged, values)
    clusters = [row.cluster for row in judged]
    compared = _ratings(judge, readers, clusters) if values is None else _shares(judge, readers, clusters)
    if values is not None:
        compared["labels"] = _by_label(judged, values)
    names = dict.fromkeys(name for row in judged for name in row.groups or {})
    groups = {name: _by_group(judged, name, values) for name in names}
    return report | compared | {"groups": groups, "planted": planted(judged, judge, readers, values is None)}


def _sides(rows: Sequence[Rated], values: Mapping[str, float] | None) -> tuple[Floats, Floats]:
    """Return what the judge and what the readers say of each row."""
    return np.array([row.value for row in rows], dtype=np.float64), np.array([consensus(row, values) for row in rows], np.float64)


def _shares(judge: Floats, readers: Floats, clusters: Sequence[str]) -> dict[str, Any]:
    counts = confusion(rounded(readers), rounded(judge), BINARY)
    return {
        "kappa": kappa_of(rounded(readers), rounded(judge), clusters, BINARY, False),
        "confusion": counts.tolist(),  # rows: readers 0, 1; columns: judge 0, 1
        "agreement": proportion(int(counts.trace()), int(counts.sum())),
        "sensitivity": proportion(int(counts[1, 1]), int(counts[1].sum())),
        "specificity": proportion(int(counts[0, 0]), int(counts[0].sum())),
        "bias": bias_of(judge, readers, clusters),
    }


def _ratings(judge: Floats, readers: Floats, clusters: Sequence[str]) -> dict[str, Any]:
    ranges = []
    for low, high in RANGES:
        inside = (rounded(readers) >= low) & (rounded(readers) <= high)
        own = [cluster for cluster, chosen in zip(clusters, inside, strict=True) if chosen]
        ranges.append({"range": range_name(low, high)} | bias_of(judge[inside], readers[inside], own))
    strong = _shares((judge >= STRONG_FROM).astype(float), (readers >= STRONG_FROM).astype(float), clusters)
    return {
        "kappa": kappa_of(rounded(readers), rounded(judge), clusters, RATINGS, True),
        "within_1": proportion(int((abs(judge - readers) <= CLOSE).sum()), len(judge)),
        "spearman": _spearman(judge, readers),
        "bias": bias_of(judge, readers, clusters),
        "bias_by_range": ranges,
        "strong": {"from": STRONG_FROM} | strong,
    }


def _spearman(first: Floats, second: Floats) -> float | None:
    varied = len(first) > 2 and np.ptp(first) > 0 and np.ptp(second) > 0
    return float(spearmanr(first, second).statistic) if varied else None


def _by_label(rows: Sequence[Rated], values: Mapping[str, float]) -> dict[str, Any]:
    """Count the readers' labels against the judge's, over the rows for which the readers have one label."""
    pairs = Counter((_label(row), row.label) for row in rows)
    ours = [name for name in values if any(first == name for first, _ in pairs)]
    theirs = list(dict.fromkeys([*values, *sorted({label for _, label in pairs})]))
    theirs = [name for name in theirs if any(first is not None and second == name for first, second in pairs)]
    counts = [[pairs[first, second] for second in theirs] for first in ours]
    differ = sum(count for (first, _), count in pairs.items() if first is None)
    return {"readers": ours, "judge": theirs, "counts": counts, "readers_differ": differ}


def _label(row: Rated) -> str | None:
    if row.adjudicated is not None:
        return str(row.adjudicated)
    found = {str(answer) for answer in row.labels.values()}
    return found.pop() if len(found) == 1 else None


def _by_group(rows: Sequence[Rated], name: str, values: Mapping[str, float] | None) -> list[dict[str, Any]]:
    found = []
    for group in sorted({(row.groups or {}).get(name, "") for row in rows} - {""}):
        chosen = [row for row in rows if (row.groups or {}).get(name) == group]
        judge, readers = _sides(chosen, values)
        clusters = [row.cluster for row in chosen]
        kept: tuple[str, ...] = ("within_1", "agreement", "bias")
        if name != "intended":  # which nearly says what the readers say: within one kind there is nothing left to tell apart
            kept = (*kept, "kappa", "sensitivity", "specificity")
        compared = _ratings(judge, readers, clusters) if values is None else _shares(judge, readers, clusters)
        found.append({"name": group, "rows": len(chosen)} | {key: compared[key] for key in kept if key in compared})
    return found


def readers_agreement(rows: Sequence[Rated], values: Mapping[str, float] | None) -> list[dict[str, Any]]:
    """Return how each two readers agree on the rows that both labelled: no judge can be expected to agree more."""
    found = []
    for first, second in combinations(sorted({name for row in rows for name in row.labels}), 2):
        both = [row for row in rows if first in row.labels and second in row.labels]
        ours, theirs = (np.array([_value(row.labels[n], values) for row in both], dtype=np.float64) for n in (first, second))
        clusters = [row.cluster for row in both]
        compared = _ratings(theirs, ours, clusters) if values is None else _shares(theirs, ours, clusters)
        kept = ("kappa", "within_1", "agreement", "confusion", "spearman")
        pair = {"labellers": [first, second], "rows": len(both)} | {key: compared[key] for key in kept if key in compared}
        if values is None:
            pair["strong"] = {key: compared["strong"][key] for key in ("kappa", "confusion")}
        else:
            names = list(values)
            ours, theirs = (np.array([names.index(str(row.labels[n])) for row in both], np.float64) for n in (first, second))
            pair["label_kappa"] = kappa_of(rounded(ours), rounded(theirs), clusters, len(names), False)
        found.append(pair)
    return found


def planted(rows: Sequence[Rated], judge: Floats, readers: Floats, graded: bool = True) -> dict[str, Any] | None:
    """Return how replies are rated by what they were written to be, and whether in the order strong > mild > each other kind.

    "means" by kind; "pairs": of two kinds, the share of pairs of replies in which the first is rated higher, ties as half
    (Vargha and Delaney 2000, J. Educ. Behav. Stat. 25:101): a rating is ordinal, and one reply that is misread moves a mean of
    few as much as many mild ones. "ordered": all of these are above one half; None where strong, mild or all others are missing.
    Values that are not `graded`, 0 or 1, may be equal for strong and mild: a veiled threat is a threat. None where no row says
    what it was written to be.
    """
    kinds = np.array([(row.groups or {}).get("intended", "") for row in rows])
    names = [str(name) for name in np.unique(kinds) if name]
    if not names:
        return None
    rest = [name for name in names if name not in ("strong", "mild")]
    complete = {"strong", "mild"} <= set(names) and rest
    found: dict[str, Any] = {}
    for side, values in (("judge", judge), ("readers", readers)):
        own = {name: values[kinds == name] for name in names}
        compared = [("strong", "mild"), *(("mild", name) for name in rest)] if complete else []
        pairs = {f"{a} > {b}": _above(own[a], own[b]) for a, b in compared}
        ordered = all(share > 0.5 or (share == 0.5 and not graded and pair == "strong > mild") for pair, share in pairs.items())
        means = {name: float(mine.mean()) for name, mine in own.items()}
        found[side] = {"means": means, "pairs": pairs, "ordered": ordered if complete else None}
    return found


def _above(first: Floats, second: Floats) -> float:
    gaps = first[:, None] - second[None, :]
    return float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))
