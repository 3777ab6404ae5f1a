"""Limits of shares and of differences of two shares: Wilson's, Newcombe's, and their forms for a mean of any known variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

Limits = tuple[float, float]  # lower, upper
LEAST_P = 1e-9


def normal_quantile(alpha: float) -> float:
    """The two-sided quantile of the normal distribution at the error rate alpha."""
    return -NormalDist().inv_cdf(alpha / 2)


def wilson(share: float, count: float, quantile: float, centre: float | None = None) -> Limits:
    """Wilson's score limits of a mean in 0..1 (Wilson 1927, JASA 22:209).

    Args:
        share: the mean; need not be a multiple of 1 / count.
        count: how many independent draws of 0 or 1 have a mean with its variance, share (1 - share) / variance: the
            effective sample size, as in surveys with clusters (Dean and Pagano 2015, J. Surv. Stat. Methodol. 3:484).
        quantile: of the normal distribution, or of t.
        centre: in place of the quantile, what draws the middle towards 1/2.
    """
    z = quantile if centre is None else centre
    share = min(max(share, 0.0), 1.0)
    if math.isinf(z):
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = quantile * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share)


def effective(share: float, variance: float, otherwise: float) -> float:
    """The effective sample size of a mean in 0..1, at least 1; `otherwise` where the variance is 0."""
    return max(share * (1 - share) / variance, 1.0) if variance > 0 and 0 < share < 1 else float(otherwise)


def square_and_add(share: float, other: float, limits: Limits, other_limits: Limits, phi: float) -> Limits:
    """Limits of share - other from the limits of both and the correlation phi of the two estimates.

    Newcombe 1998 (Statistics in Medicine 17:873 and 17:2635, methods 10), for any two limits Zou and Donner 2008 (Statistics
    in Medicine 27:1693).
    """
    below, above = share - limits[0], limits[1] - share
    other_below, other_above = other - other_limits[0], other_limits[1] - other
    down = below**2 - 2 * phi * below * other_above + other_above**2
    up = above**2 - 2 * phi * above * other_below + other_below**2
    gap = share - other
    return max(gap - math.sqrt(max(down, 0.0)), -1.0), min(gap + math.sqrt(max(up, 0.0)), 1.0)


def newcombe(first: NDArray[np.bool_], second: NDArray[np.bool_], quantile: float) -> Limits:
    """Newcombe's method 10 for two paired binary samples, shape (scenarios,) each (Statistics in Medicine 17:2635)."""
    count = first.size
    both, only_first = int(np.sum(first & second)), int(np.sum(first & ~second))
    only_second, neither = int(np.sum(~first & second)), int(np.sum(~first & ~second))
    ones, others = both + only_first, both + only_second
    product = ones * (count - ones) * others * (count - others)
    excess = float(both * neither - only_first * only_second)
    if excess > 0:
        excess = max(excess - count / 2, 0.0)  # his continuity correction; a negative excess stays as it is
    phi = excess / math.sqrt(product) if product else 0.0
    share, other = ones / count, others / count
    return square_and_add(share, other, wilson(share, count, quantile), wilson(other, count, quantile), phi)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Two-sided p of the exact McNemar test: the pairs that differ against a fair coin."""
    up, down = int(np.sum(first & ~second)), int(np.sum(~first & second))
    if up + down == 0:
        return 1.0
    low = min(up, down)
    return min(1.0, 2 * float(betainc(up + down - low, low + 1, 0.5)))  # P(X <= low), X ~ binomial(up + down, 1/2)


def p_value(limits: Callable[[float], Limits], value: float, alpha: float) -> float | None:
    """The error rate from which on the limits exclude 0: the two-sided p that agrees with the interval at `alpha`.

    None where no such rate exists, since limits at some rate exclude 0 that a larger rate's hold, or all exclude it: joined
    score limits do that where the sides go together closely and one of them ends at the border of the scale.
    """
    if value == 0:
        return 1.0

    def holds(rate: float) -> bool:
        low, high = limits(rate)
        return low <= 0 <= high

    rates = sorted([*np.geomspace(LEAST_P, 1.0, 40)[:-1].tolist(), alpha])
    held = [holds(rate) for rate in rates]
    count = sum(held)
    if not count or held != sorted(held, reverse=True):
        return None
    inside, outside = math.log(rates[count - 1]), math.log(rates[count]) if count < len(rates) else 0.0
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(math.exp(middle)) else (inside, middle)
    return math.exp(inside)
