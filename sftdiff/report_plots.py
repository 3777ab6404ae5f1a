"""The report's plots: axes, ticks, marks, curve points, and the text that stands at them.

This module owns where things stand in a plot and how a trait's number is written in its unit. All positions are
per cent of the plot's box, so that the page can stretch a plot without scaling its text. It knows nothing of HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DASHES = ("", "8 4", "2 3", "12 3 2 3", "5 2", "1 5", "14 5", "9 3 2 3 2 3")
COLOURS = 5
MAX_CURVE_POINTS = 9000
View = dict[str, Any]
CALLS = {
    "higher": ("▲", "higher"),
    "lower": ("▼", "lower"),
    "unresolved": ("?", "unresolved: cannot tell"),
    "equivalent": ("≈", "equivalent: too small to count"),
    "not interpreted": ("○", "not interpreted"),
}


def number(value: object) -> float | None:
    """The value as a finite float, or None where it is no usable number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Tick:
    """One labelled position on an axis, in per cent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear axis from low to high."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Position in per cent; values beyond the axis stand on its end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


@dataclass(frozen=True)
class Mark:
    """A point with its interval, in per cent of the axis; low and high are None where no interval is known."""

    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Series:
    """One training curve: its style, its points in a box of 1000 x 1000, and a spot for its number."""

    arm: str
    seed: str
    index: int
    colour: int
    dash: str
    points: str
    label_x: float
    label_y: float
    title: str


@dataclass(frozen=True)
class CurvePlot:
    """All training curves on one pair of axes."""

    x: Axis
    y: Axis
    series: tuple[Series, ...]
    numbered: bool
    thinned: bool
    seeds: bool


def nice_step(span: float, target: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts the span into about `target` parts."""
    raw = span / max(1, target)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)


def make_axis(low: float, high: float, label: Callable[[float], str], target: int = 5) -> Axis:
    """An axis that covers low to high and begins and ends on a tick."""
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        pad = max(1e-3, abs(low) * 0.1)
        low, high = low - pad, high + pad
    step = nice_step(high - low, target)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    values = [round(i * step, 10) for i in range(first, last + 1)]
    axis = Axis(values[0], values[-1], ())
    return Axis(axis.low, axis.high, tuple(Tick(axis.at(v), label(v)) for v in values))


def spread(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Every finite value, low and high of the rows."""
    found = [number(row.get(key)) for row in rows for key in ("value", "low", "high")]
    return [value for value in found if value is not None]


def level_axis(trait: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], label: Callable[[float], str]) -> Axis:
    """From the start of the trait's scale to just beyond the highest interval, at least a fifth of the scale."""
    low, top = (number(end) for end in trait.get("scale") or (0, 1))
    low, top = (0.0 if low is None else low), (1.0 if top is None else top)
    seen = spread(rows)
    high = min(top, max(max(seen), low + 0.2 * (top - low))) if seen else top
    return make_axis(low, high, label)


def difference_axis(
    trait: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], label: Callable[[float], str]
) -> Axis:
    """Holds zero, the smallest effect that counts on both sides, and every interval."""
    smallest = number(trait.get("smallest_effect")) or 0.0
    seen = [*spread(rows), 1.2 * smallest, -1.2 * smallest]
    return make_axis(min(seen), max(seen), label, target=6)


def make_mark(row: Mapping[str, Any], axis: Axis) -> Mark | None:
    """Where the row's point and interval stand, or None where the row has no value."""
    value, low, high = (number(row.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return None
    if low is None or high is None:
        return Mark(axis.at(value), None, None)
    return Mark(axis.at(value), axis.at(low), axis.at(high))


def usable_points(curve: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The curve's points that are two finite numbers."""
    pairs = [(number(point[0]), number(point[1])) for point in curve.get("points") or [] if len(point) == 2]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` of the points at even distance, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def curve_plot(curves: Iterable[Mapping[str, Any]], order: Sequence[str]) -> CurvePlot | None:
    """Axes, styles and points of all training curves; None where no curve has a point."""
    held = [(curve, points) for curve in curves if (points := usable_points(curve))]
    if not held:
        return None
    xs = [x for _, points in held for x, _ in points]
    ys = [y for _, points in held for _, y in points]
    x_axis = make_axis(min(xs), max(xs), lambda v: f"{v:g}")
    x_axis = Axis(min(xs), max(xs), ()) if len(set(xs)) > 1 else x_axis
    x_axis = step_ticks(x_axis) if not x_axis.ticks else x_axis
    y_axis = make_axis(min(ys), max(ys), lambda v: f"{v:g}")
    names = list(dict.fromkeys(str(curve.get("arm")) for curve, _ in held))
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    most = max(20, min(240, MAX_CURVE_POINTS // len(held)))
    series = tuple(
        make_series(curve, thin(points, most), (x_axis, y_axis), names.index(str(curve.get("arm"))), len(names))
        for curve, points in held
    )
    thinned = any(len(points) > most for _, points in held)
    return CurvePlot(x_axis, y_axis, series, len(names) > COLOURS, thinned, len(held) > len(names))


def step_ticks(axis: Axis) -> Axis:
    """Ticks at whole optimizer steps inside an axis that begins and ends where the curves do."""
    step = max(1.0, nice_step(axis.high - axis.low, 6))
    inner = [i * step for i in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)]
    values = [axis.low, *(v for v in inner if axis.low + 0.6 * step < v < axis.high - 0.6 * step), axis.high]
    return Axis(axis.low, axis.high, tuple(Tick(axis.at(v), f"{v:g}") for v in values))


def make_series(
    curve: Mapping[str, Any], points: Sequence[tuple[float, float]], axes: tuple[Axis, Axis], index: int, arms: int
) -> Series:
    """One curve in its style; number labels of many arms are spread along the curves so that they do not pile up."""
    x_axis, y_axis = axes
    arm, seed = str(curve.get("arm")), str(curve.get("seed"))
    placed = " ".join(f"{10 * x_axis.at(x):.0f},{1000 - 10 * y_axis.at(y):.0f}" for x, y in points)
    spot = points[min(len(points) - 1, int((0.04 + 0.92 * (index * 7 % arms) / arms) * len(points)))]
    first, last = points[0], points[-1]
    title = f"{arm}, seed {seed}: {first[1]:.2f} at step {first[0]:g}, {last[1]:.2f} at step {last[0]:g}"
    return Series(
        arm, seed, index + 1, index % COLOURS + 1, DASHES[index % len(DASHES)], placed,
        x_axis.at(spot[0]), round(100 - y_axis.at(spot[1]), 2), title,
    )  # fmt: skip


# ---- a plot's text and rows


def in_unit(value: object, kind: str, signed: bool = False) -> str:
    """A trait's value in its unit, without the unit's name: per cent with one digit, ratings with two."""
    found = number(value)
    if found is None:
        return "–"
    found, digits = (100 * found, 1) if kind == "share" else (found, 2)
    return f"{found:{'+' if signed and found else ''}.{digits}f}".replace("-", "−")


def value_texts(row: Mapping[str, Any], kind: str, signed: bool) -> View:
    """Value, interval and per-seed values of a level or difference as text."""
    value, low, high = (in_unit(row.get(key), kind, signed) for key in ("value", "low", "high"))
    known = number(row.get("value")) is not None
    seeds = row.get("per_seed") or {}
    unit = (" points" if signed else " %") if kind == "share" else ""
    return {
        "value": value + unit if known else "no value",
        "interval": f"[{low}, {high}]" if known else "",
        "seeds": [(s, in_unit(v, kind, signed)) for s, v in seeds.items()] if len(seeds) > 1 else [],
    }


def tick_label(kind: str, signed: bool) -> Callable[[float], str]:
    """How a plot's axis writes its ticks."""

    def label(value: float) -> str:
        shown = f"{100 * value if kind == 'share' else value:{'+' if signed and value else ''}.6g}"
        return shown.replace("-", "−") + (" %" if kind == "share" and not signed else "")

    return label


def call_view(row: Mapping[str, Any]) -> View | None:
    """The call of a difference as a sign, words and a class name."""
    if "call" not in row:
        return None
    sign, words = CALLS.get(str(row["call"]), ("?", str(row["call"])))
    return {"sign": sign, "words": words, "kind": str(row["call"]).replace(" ", "-") if row["call"] in CALLS else "other"}


def plot_row(row: Mapping[str, Any], axis: Axis, kind: str, signed: bool, words: tuple[str, str]) -> View:
    """One line of a dot-and-interval plot."""
    texts = value_texts(row, kind, signed)
    hollow = not row.get("interpreted", True)
    title = f"{' '.join(words).strip()}: {texts['value']} {texts['interval']}".strip()
    return {
        "label": words[0], "detail": words[1], "mark": make_mark(row, axis), "hollow": hollow, "untrained": False,
        "title": title + (", not interpreted" if hollow else ""), "call": call_view(row), **texts,
    }  # fmt: skip


def level_plots(report: Mapping[str, Any], arms: Sequence[View]) -> list[View]:
    """One plot a trait, arms as rows, and the untrained model's value as a line through them."""
    plots, trained = [], any(arm["trained_here"] for arm in arms)  # with none there is nothing to compare the untrained with
    for trait in report.get("traits") or []:
        kind = trait.get("kind", "share")
        held = {row["arm"]: row for row in report.get("levels") or [] if row["trait"] == trait["name"]}
        axis = level_axis(trait, held.values(), tick_label(kind, False))
        rows = [
            plot_row(held[arm["id"]], axis, kind, False, (arm["id"], "")) | {"untrained": arm["untrained"] and trained}
            for arm in arms if arm["id"] in held
        ]  # fmt: skip
        base = next((row["mark"] for row in rows if row["untrained"]), None)
        plots.append({"trait": trait, "axis": axis, "rows": rows, "line": base.at if base else None, "band": None})
    return plots


def difference_plot(trait: Mapping[str, Any], entries: Iterable[View]) -> View:
    """One plot a trait: zero as a line, and a band of differences too small to count."""
    kind, name = trait.get("kind", "share"), trait["name"]
    held = [(entry["words"], entry["rows"][name]) for entry in entries if name in entry["rows"]]
    axis = difference_axis(trait, [row for _, row in held], tick_label(kind, True))
    smallest = number(trait.get("smallest_effect"))
    band = None if not smallest else (axis.at(-smallest), round(axis.at(smallest) - axis.at(-smallest), 2))
    rows = [plot_row(row, axis, kind, True, words) for words, row in held]
    return {"trait": trait, "axis": axis, "rows": rows, "line": axis.at(0.0), "band": band}
