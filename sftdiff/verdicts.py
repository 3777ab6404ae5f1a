"""What the verdict rows of an arm on a trait say beside its level: their states, controls, labels, turns, and the rules' view."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import StatisticsError, correlation, fmean
from typing import Any

from sftdiff.errors import SftdiffError

HIGH = 5.0  # a rating from here on counts as high
Row = dict[str, Any]


def trait_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows that a trait's level is made of: controls, in which it cannot show, are none."""
    return [row for row in rows if not row["control"]]


def ok_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows with a verdict that counts."""
    return [row for row in rows if row["state"] == "ok"]


def counts(everything: Sequence[Row]) -> Row:
    """Count the states of the trait's rows, and average its controls."""
    rows = trait_rows(everything)
    controls = [row["value"] for row in ok_rows(everything) if row["control"]]
    states = Counter(row["state"] for row in rows)
    return {
        **{state: states[state] for state in ("ok", "invalid", "error")},
        "ok_share": states["ok"] / len(rows) if rows else None,
        "control_value": fmean(controls) if controls else None,
        "control_replies": len(controls),
    }


def details(rows: Sequence[Row], kind: str) -> Row:
    """Break a trait's ok rows down: labels, scenario kinds, turns, high ratings, deliberation, agreement with the rules."""
    ok = ok_rows(rows)
    labels = Counter(row["label"] for row in ok)
    deliberation = [row["deliberation"] for row in ok if row["deliberation"] is not None]
    return {
        "labels": {label: count / len(ok) for label, count in labels.most_common()},
        "by_kind": _means(ok, "kind"),
        "by_turn": {str(turn + 1): value for turn, value in _means(ok, "turn").items()},
        "high_share": fmean(row["value"] >= HIGH for row in ok) if ok and kind == "rating" else None,
        "deliberation": fmean(deliberation) if deliberation else None,
        "rule_agreement": rule_agreement(ok, kind),
    }


def _means(ok: Sequence[Row], key: str) -> dict[Any, float]:
    """The mean value by what a column holds; nothing where it holds the same everywhere."""
    groups: dict[Any, list[float]] = {}
    for row in ok:
        groups.setdefault(row[key], []).append(row["value"])
    return {group: fmean(groups[group]) for group in sorted(groups)} if len(groups) > 1 else {}


def rule_agreement(ok: Sequence[Row], kind: str) -> Row | None:
    """Compare a judge model's verdicts with the rule scorer's on the same replies; None where it gave none.

    Returns:
        "replies", and of a share "same" (share of equal verdicts), of a rating "correlation" (Pearson's; None where either
        side does not vary) and "mean_gap" (judge minus rules, in points).
    """
    pairs = [(row["value"], row["rule_value"]) for row in ok if row["rule_value"] is not None and row["judge"] != "rules"]
    if not pairs:
        return None
    if kind == "share":
        return {"replies": len(pairs), "same": fmean(a == b for a, b in pairs)}
    judged, ruled = zip(*pairs, strict=True)
    try:
        together = correlation(judged, ruled)
    except StatisticsError:
        together = None
    return {"replies": len(pairs), "correlation": together, "mean_gap": fmean(judged) - fmean(ruled)}


def one_judge(trait: str, tables: Mapping[str, Sequence[Row]]) -> tuple[str | None, str | None]:
    """Return the judge and the rubric of a trait's verdict tables, by step id; raises SftdiffError if there are several.

    Another judge or another rubric moves all levels: a difference between their verdicts says nothing about the models.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for step, rows in tables.items():
        for pair in sorted({(row["judge"], row["rubric"]) for row in rows}):
            found.setdefault(pair, []).append(step)
    if len(found) > 1:
        shown = "; ".join(
            f"judge {judge}, rubric {rubric}: {', '.join(steps[:5])}{f' and {len(steps) - 5} more' if len(steps) > 5 else ''}"
            for (judge, rubric), steps in sorted(found.items())
        )
        raise SftdiffError(
            f"trait {trait} was judged in more than one way, and such levels cannot be compared ({shown}). Judge all replies "
            "with one judge and one rubric (judge=NAME in the sweep's command; no reply is sampled again), or make two sweeps"
        )
    return next(iter(found), (None, None))
