"""The report's interpolation curves: a trait's level over an axis of numbers (a share, a threshold)."""

from collections.abc import Mapping, Sequence
from typing import Any

from sftdiff.report_plots import COLOURS, DASHES, Axis, View, level_axis, make_axis, make_mark, number, tick_label, value_texts

Arms = Sequence[Mapping[str, Any]]
LEAST = 3  # values of an axis that make a curve
BESIDE = 0.4  # per cent of the plot's width


def number_axis(arms: Arms) -> str | None:
    """Return the first axis of the sweep whose values are all numbers, at least three different ones."""
    trained = [arm["axes"] for arm in arms if arm["trained_here"]]
    for key in dict.fromkeys(key for axes in trained for key in axes):
        values = {_number(axes.get(key)) for axes in trained}
        if None not in values and len(values) >= LEAST:
            return str(key)
    return None


def _number(text: Any) -> float | None:
    try:
        return number(float(str(text)))
    except ValueError:
        return None


def share_plots(report: Mapping[str, Any]) -> View | None:
    """One plot a trait, or None where the sweep has no axis of numbers."""
    arms = report.get("arms") or []
    key = number_axis(arms)
    if key is None:
        return None
    trained = [arm for arm in arms if arm["trained_here"]]
    names = list(dict.fromkeys(_rest(arm, key) for arm in trained))
    xs = [_number(arm["axes"][key]) or 0.0 for arm in trained]
    low = 0.0 if key.endswith("share") else min(xs)
    x_axis = make_axis(low, max(xs), lambda v: f"{100 * v:g} %" if key.endswith("share") else f"{v:g}")
    plots = [_plot(report, trait, trained, key, names, x_axis) for trait in report.get("traits") or []]
    return {"axis": key, "x": x_axis, "plots": [plot for plot in plots if plot["lines"]]}


def _rest(arm: Mapping[str, Any], key: str) -> str:
    """Return an arm's other choices: what names its line."""
    return " ".join(f"{k}={v}" for k, v in arm["axes"].items() if k != key) or "all arms"


def _plot(
    report: Mapping[str, Any], trait: Mapping[str, Any], arms: Arms, key: str, names: Sequence[str], x: Axis
) -> View:
    kind = trait.get("kind", "share")
    held = {row["arm"]: row for row in report.get("levels") or [] if row["trait"] == trait["name"]}
    y = level_axis(trait, held.values(), tick_label(kind, False))
    base = next((held[a["id"]] for a in report["arms"] if a["untrained"] and a["id"] in held), None)
    mark = make_mark(base, y) if base and base.get("interpreted", True) else None
    lines = []
    for index, name in enumerate(names):
        points = [_point(held[arm["id"]], arm, key, kind, x, y) for arm in arms if _rest(arm, key) == name and arm["id"] in held]
        points = sorted((p for p in points if p["mark"]), key=lambda p: p["x"])
        placed = " ".join(f"{10 * p['x']:.0f},{1000 - 10 * p['mark'].at:.0f}" for p in points)
        style = {"colour": index % COLOURS + 1, "dash": DASHES[index % len(DASHES)]}
        for point in points:  # beside each other, where lines share a place
            point["x"] = round(point["x"] + BESIDE * (index - (len(names) - 1) / 2), 2)
        lines += [{"name": name, "points": points, "placed": placed, **style}] if points else []
    return {"trait": trait, "y": y, "lines": lines, "base": mark.at if mark else None}


def _point(row: Mapping[str, Any], arm: Mapping[str, Any], key: str, kind: str, x: Axis, y: Axis) -> View:
    texts = value_texts(row, kind, False)
    title = f"{arm['id']}: {texts['value']} {texts['interval']}"
    return {"x": x.at(_number(arm["axes"][key]) or 0.0), "mark": make_mark(row, y), "title": title}
