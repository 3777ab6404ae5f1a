"""How much of a trait an arm keeps: transfer = (arm - alternative) / (original - alternative), with limits, and its call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftdiff import stats
from sftdiff.limits import Limits, effective, normal_quantile, wilson
from sftdiff.spread import spread
from sftdiff.stats import Interval

Cells = NDArray[np.float64]
SIDES = ("arm", "alternative", "original")
FARTHEST = 1e3  # a limit farther from the estimate is as good as none


@dataclass(frozen=True)
class Transfer:
    """Where an arm lies between the alternative (0) and the original (1).

    Attributes:
        value: the estimate, NaN where original and alternative have the same mean.
        low: lower limit, -inf where there is none.
        high: upper limit, inf where there is none.
        gap: original minus alternative, in the units of the scores, at the same error rate.
        seeds: training seeds that the limits rest on.
        scenarios: scenarios that they rest on.
        note: how the limits were computed, in words.
    """

    value: float
    low: float
    high: float
    gap: Interval
    seeds: int
    scenarios: int
    note: str


@dataclass(frozen=True)
class Bounds:
    """From which transfer on the trait counts as gone or as remaining."""

    gone: float = 1 / 3
    remains: float = 2 / 3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gone) and math.isfinite(self.remains) and self.gone <= self.remains):
            raise ValueError(f"bounds must be two finite numbers, gone at most remains, not {self.gone} and {self.remains}")


@dataclass(frozen=True)
class _Sides:
    """The three means and what is known of their spread, in units of the scale's width.

    Attributes:
        cells: shape (3, seeds, scenarios), in the order of SIDES; NaN on all where it is on one.
        means: shape (3,), 0..1.
        counts: shape (3,), effective number of draws behind each mean.
        varies: shape (3,), whether the side's scores differ.
        together: shape (3, 3), correlations of the means.
    """

    cells: Cells
    means: Cells
    counts: Cells
    varies: NDArray[np.bool_]
    together: Cells


def transfer(
    arm: ArrayLike,
    alternative: ArrayLike,
    original: ArrayLike,
    kind: str,
    scale: Limits,
    alpha: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
) -> Transfer:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    gap = stats.difference(original, alternative, kind, scale, resamples, seed)
    sides = _sides(_aligned(arm, alternative, original, scale), scale)
    lower, middle, upper = -math.inf, math.nan, math.inf
    top, bottom = (float(sides.means[i] - sides.means[1]) for i in (0, 2))
    if bottom:
        middle = top / bottom
    if bottom and not gap.low <= 0 <= gap.high:
        lower, upper = (_limit(lambda c: _holds(sides, c, alpha), middle, way) for way in (-1, 1))
    return Transfer(middle, lower, upper, gap, sides.cells.shape[1], sides.cells.shape[2], "")


def _aligned(arm, alternative, original, scale):
    given = [np.asarray(side, dtype=np.float64) for side in (arm, alternative, original)]
    cells = np.stack(np.broadcast_arrays(*given))
    cells = np.where(np.isnan(cells).any(axis=0), np.nan, cells)
    valid = ~np.isnan(cells[0])
    return cells[:, valid.any(axis=1)][:, :, valid.any(axis=0)]


def _sides(cells: Cells, scale: Limits) -> _Sides:
    scaled = (cells - scale[0]) / (scale[1] - scale[0])
    means = np.nanmean(scaled, axis=(1, 2))
    scenarios = cells.shape[2]
    variances = np.array([spread(side).variance for side in scaled])
    varies = variances > 0
    single, bound = np.nanvar(scaled, axis=(1, 2)), means * (1 - means)
    dispersion = float(np.sum(single[varies]) / np.sum(bound[varies])) if varies.any() else 1.0
    dispersion = min(dispersion, 1.0)
    counts = np.array([effective(m, v, scenarios / dispersion) for m, v in zip(means, variances, strict=True)])
    together = np.eye(3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        if varies[i] and varies[j]:
            apart = max(spread(scaled[i] - scaled[j]).variance, dispersion / scenarios**2)
            product = math.sqrt(variances[i] * variances[j])
            together[i, j] = together[j, i] = min(max((variances[i] + variances[j] - apart) / (2 * product), -1.0), 1.0)
    return _Sides(scaled, means, counts, varies, together)


def _holds(sides: _Sides, c: float, alpha: float) -> bool:
    weights = np.array([1.0, c - 1.0, -c])
    z = normal_quantile(alpha)
    quantile = spread(np.tensordot(weights, sides.cells, axes=1)).at(alpha)[1]
    if not math.isfinite(quantile):
        quantile = z
    below, above = np.empty(3), np.empty(3)
    for i in range(3):
        low, high = wilson(sides.means[i], sides.counts[i], quantile if sides.varies[i] else z, z)
        below[i], above[i] = sides.means[i] - low, high - sides.means[i]
    value = float(weights @ sides.means)
    reach = weights * (np.where(weights > 0, below, above) if value > 0 else np.where(weights > 0, above, below))
    return value * value <= float(reach @ sides.together @ reach)


def _limit(holds: Callable[[float], bool], middle: float, way: int) -> float:
    offsets = [0.0, *np.geomspace(0.01, FARTHEST, 36).tolist()]
    held = [True, *[holds(middle + way * offset) for offset in offsets[1:]]]
    last = max(i for i, each in enumerate(held) if each)
    if last == len(offsets) - 1:
        return way * math.inf
    inside, outside = offsets[last], offsets[last + 1]
    for _ in range(25):
        half = (inside + outside) / 2
        inside, outside = (half, outside) if holds(middle + way * half) else (inside, half)
    return middle + way * outside


def call_transfer(t: Transfer, bounds: Bounds) -> str:
    if t.low > bounds.remains:
        return "remains"
    if t.high < bounds.gone:
        return "gone"
    return "partial" if t.low > bounds.gone and t.high < bounds.remains else "unresolved"
def differs(original, alternative, kind, scale, smallest_effect, alpha=0.05):
    f = stats.difference(original, alternative, kind, scale, 2000, 0)
    c = stats.call(f, smallest_effect)
    return f, {"equivalent": "same"}.get(c, c)
