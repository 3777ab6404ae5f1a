"""How much of the trait an arm keeps: its transfer, with limits, and the call drawn from them.

transfer = (arm - alternative) / (original - alternative) is a ratio of two differences that share a side. Its limits come from
inverting a test (Fieller 1954, JRSS B 16:175): c belongs to the set as long as arm - (1 - c) alternative - c original is not
shown to differ from 0 at the error rate. Where original and alternative do not differ at that rate, no c is excluded far out:
the set has no limits, and nothing can be called.

The test joins the limits of the three means by square-and-add with their correlations (Zou and Donner 2008, Statistics in
Medicine 27:1693; for ratios Donner and Zou 2012, Statistical Methods in Medical Research 21:347). It is made of what
`sftdiff.stats` makes its differences of, so that 0 is excluded where the arm differs from the alternative, and 1 where it
differs from the original:
- variances are those of `sftdiff.spread` over crossed seeds and scenarios (one seed: over scenarios), the quantile is that of
  the contrast at c; shares take them into Wilson's limits, as do ratings that lie at the ends of the scale alone, which are
  shares too; other ratings into t;
- a side whose scores are all equal, as a student that never or always shows the trait, has no variance. It gets Wilson's limits
  with as many draws as there are scenarios, divided by how much of p (1 - p) the scores of the other sides vary: 1 for shares
  of 0 and 1, and less for ratings, which seldom lie at the ends of their scale. More seeds that say the same do not count:
  they may be bound to;
- two sides that go together perfectly have no variance between them either. Their correlation is held down as if one scenario
  differed: by the whole scale for shares (the size of Newcombe's continuity correction, 1998, Statistics in Medicine
  17:2635), by two usual scores for ratings.

`python -m tests.bench.transfer 300` measured, with 1, 3 and 5 seeds, 20 and 40 scenarios, gaps of 0.1 to 0.9 of the scale and
transfers of 0, 0.2, 0.5 and 1 (standard error of a case: 1.3 points): of limits that should hold the truth in 95 %, those of
shares held it in 91.7-100 % (means of 97.0-98.7 % by seeds and scenarios), those of ratings in 91.0-100 % (95.8-96.9 %). Near
100 % are arms at the floor and students that answer alike at each seed. At most 2.0 % of diffs of one kind were called wrongly,
and 0.7 % where the gap is 0. What it takes to be called: 3 seeds of shares, a gap of 0.6, transfers of 0 and 1 were called in
78 and 38 % with 20 scenarios, 95 and 62 % with 40; where seeds differ (standard deviation 1 of the logit) in 44 and 16 %, 64 and
14 %. Students that never or always show the trait are called in 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sftdiff import stats
from sftdiff.limits import Limits, effective, normal_quantile, wilson
from sftdiff.matrices import check_settings, matrix, paired
from sftdiff.spread import spread
from sftdiff.stats import Interval

Cells = NDArray[np.float64]
FARTHEST = 1e3  # a limit that is farther than this from the estimate is none
RESAMPLES = 2000  # of a gap with 20 seeds or more


@dataclass(frozen=True)
class Transfer:
    """Where an arm lies between the alternative (0) and the original (1).

    Attributes:
        value: the estimate; NaN where original and alternative have the same mean.
        low: lower limit; -inf where there is none.
        high: upper limit; inf where there is none.
        gap: original minus alternative, in the units of the scores, at the same error rate.
        seeds: how many training seeds the limits rest on.
        scenarios: how many scenarios they rest on.
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
    """The equivalence bounds: below `gone` the trait went with what was exchanged, above `remains` it stayed."""

    gone: float = 1 / 3
    remains: float = 2 / 3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gone) and math.isfinite(self.remains) and self.gone <= self.remains):
            raise ValueError(f"bounds must be finite numbers, gone at most remains, not {self.gone} and {self.remains}")


@dataclass(frozen=True)
class _Sides:
    """Arm, alternative and original in units of the scale's width.

    Attributes:
        cells: scores, shape (3, seeds, scenarios), NaN on all sides where one has none.
        means: shape (3,), 0 to 1.
        variances: of the means, shape (3,); 0 where all scores of a side are equal.
        counts: effective number of draws of 0 or 1 behind each mean, shape (3,).
        together: correlations of the means, shape (3, 3).
        score: whether sides that vary have score limits, or t.
    """

    cells: Cells
    means: Cells
    variances: Cells
    counts: Cells
    together: Cells
    score: bool


def transfer(
    arm: ArrayLike,
    alternative: ArrayLike,
    original: ArrayLike,
    kind: str,
    scale: Limits,
    alpha: float = stats.ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Transfer:
    """The transfer of an arm with its 1 - alpha limits, paired by scenario and seed.

    Args:
        arm, alternative, original: shape (seeds, scenarios) each, NaN = missing; the same scenarios in the same order, and as
            many seeds in the same order, or one row that serves for every seed of the others.
        kind: "share" or "rating".
        scale: lowest and highest possible score; (0, 1) for a share.
        alpha: error rate, in (0, 1).
        resamples, seed: of the gap's bootstrap, which is used from 20 seeds on.

    Raises:
        ValueError: as in `stats.difference`; no cell valid on all three sides; alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    check_settings(kind, scale, resamples)
    sides = _sides(arm, alternative, original, kind, scale)
    gap = stats.difference(original, alternative, kind, scale, resamples, seed, alpha=alpha)
    _, seeds, scenarios = sides.cells.shape
    above, whole = (float(sides.means[i] - sides.means[1]) for i in (0, 2))
    value = above / whole if whole else math.nan
    if not whole or gap.low <= 0 <= gap.high:
        note = "no limits: original and alternative are not shown to differ at this error rate"
        return Transfer(value, -math.inf, math.inf, gap, seeds, scenarios, note)
    low, high = (_limit(lambda c: _holds(sides, c, alpha), value, way) for way in (-1, 1))
    return Transfer(value, low, high, gap, seeds, scenarios, _note(sides))


def call_transfer(t: Transfer, bounds: Bounds) -> str:
    """Return "remains", "gone" or "partial" where the limits lie wholly in that range of the bounds, else "unresolved"."""
    if t.low > bounds.remains:
        return "remains"
    if t.high < bounds.gone:
        return "gone"
    return "partial" if bounds.gone < t.low and t.high < bounds.remains else "unresolved"


def differs(
    original: ArrayLike,
    alternative: ArrayLike,
    kind: str,
    scale: Limits,
    smallest_effect: float,
    alpha: float = stats.ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> str:
    """Is there anything to diff? "higher": the original shows more of the trait; "lower"; "same"; "unresolved".

    The rule is that of `stats.call` on original minus alternative: "same" only where the interval lies within the smallest
    effect on both sides. Arguments and errors are those of `transfer` and `stats.call`.
    """
    return gap_call(stats.difference(original, alternative, kind, scale, resamples, seed, alpha=alpha), smallest_effect)


def gap_call(gap: Interval, smallest_effect: float) -> str:
    """Return what `differs` says of an interval of original minus alternative that is known already."""
    found = stats.call(gap, smallest_effect)
    return "same" if found == "equivalent" else found


def _sides(arm: ArrayLike, alternative: ArrayLike, original: ArrayLike, kind: str, scale: Limits) -> _Sides:
    given = {"arm": arm, "alternative": alternative, "original": original}
    aligned = paired(**{name: matrix(scores, scale, name) for name, scores in given.items()})
    cells = (np.stack(aligned) - scale[0]) / (scale[1] - scale[0])
    means, single = np.nanmean(cells, axis=(1, 2)), np.nanvar(cells, axis=(1, 2))
    variances = np.array([spread(side).variance for side in cells])
    varies, most = variances > 0, means * (1 - means)
    dispersion = min(float(single[varies].sum() / most[varies].sum()), 1.0) if varies.any() else 1.0
    scenarios, score = cells.shape[2], kind == "share" or bool(np.all(np.isnan(cells) | (cells == 0) | (cells == 1)))
    counts = [effective(mean, v, scenarios / dispersion) for mean, v in zip(means, variances, strict=True)]
    together = np.eye(3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        if varies[i] and varies[j]:
            one = (dispersion if score else single[i] + single[j]) / scenarios**2
            alone = variances[i] + variances[j]
            apart = max(spread(cells[i] - cells[j]).variance, min(one, alone))
            phi = (alone - apart) / (2 * math.sqrt(variances[i] * variances[j]))
            together[i, j] = together[j, i] = min(max(phi, -1.0), 1.0)
    return _Sides(cells, means, variances, np.array(counts), together, score)


def _holds(sides: _Sides, c: float, alpha: float) -> bool:
    """Whether a transfer of c is compatible with the scores at the error rate alpha."""
    weights, normal = np.array([1.0, c - 1.0, -c]), normal_quantile(alpha)
    arm, alternative, original = sides.cells
    _, quantile = spread(arm + (c - 1) * alternative - c * original).at(alpha)
    quantile = quantile if math.isfinite(quantile) else normal
    reaches = []
    for mean, variance, count in zip(sides.means.tolist(), sides.variances.tolist(), sides.counts.tolist(), strict=True):
        if variance and not sides.score:
            reaches.append((quantile * math.sqrt(variance),) * 2)
        else:
            low, high = wilson(mean, count, quantile if variance else normal, normal)
            reaches.append((mean - low, high - mean))
    contrast = float(weights @ sides.means)
    towards = [reach[(weight > 0) == (contrast < 0)] for reach, weight in zip(reaches, weights.tolist(), strict=True)]
    reach = weights * np.array(towards)
    return contrast * contrast <= float(reach @ sides.together @ reach)


def _limit(holds: Callable[[float], bool], value: float, way: int) -> float:
    """The farthest c that holds, below (way = -1) or above (way = 1) the estimate."""
    offsets: list[float] = [0.0, *np.geomspace(0.02, FARTHEST, 18).tolist()]
    last = next(i for i in reversed(range(len(offsets))) if not i or holds(value + way * offsets[i]))
    if last == len(offsets) - 1:
        return way * math.inf
    inside, outside = offsets[last], offsets[last + 1]
    for _ in range(20):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(value + way * middle) else (inside, middle)
    return value + way * outside


def _note(sides: _Sides) -> str:
    """How the limits were computed, in words."""
    _, seeds, scenarios = sides.cells.shape
    sample = f"{scenarios} scenarios, given this one training" if seeds == 1 else f"{seeds} seeds x {scenarios} scenarios"
    names = zip(("arm", "alternative", "original"), sides.variances, sides.counts, strict=True)
    equal = [f"{name} taken as {count:.0f} draws" for name, variance, count in names if not variance]
    why = f"; equal scores: {', '.join(equal)}" if equal else ""
    return f"Fieller's set, {'score' if sides.score else 't'} limits joined by square-and-add, paired, {sample}{why}"
