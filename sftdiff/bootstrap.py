"""The two-level bootstrap of a mean over training seeds and scenarios (Owen 2007, Ann. Appl. Stat. 1:386)."""

import numpy as np

from sftdiff.limits import Limits
from sftdiff.matrices import Scores

BOOTSTRAP_SEEDS = 20  # from here on it holds what it says


def _resampled_means(cells: Scores, resamples: int, seed: int) -> Scores:
    """Bootstrap means, shape (resamples,): how often each row and column is drawn weights the valid cells."""
    rng = np.random.default_rng(seed)
    seeds, scenarios = cells.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(np.float64)
    columns = rng.multinomial(scenarios, np.full(scenarios, 1 / scenarios), size=resamples).astype(np.float64)
    valid = ~np.isnan(cells)
    totals = ((rows @ np.where(valid, cells, 0.0)) * columns).sum(axis=1)
    counts = ((rows @ valid.astype(np.float64)) * columns).sum(axis=1)
    means: Scores = totals[counts > 0] / counts[counts > 0]  # a resample may hit missing cells only
    return means


def bootstrap(cells: Scores, scale: Limits, resamples: int, seed: int, alpha: float) -> tuple[Limits, str, float] | None:
    """Percentile limits of the mean, the method in words, and p; None if all resampled means are equal."""
    means, value = _resampled_means(cells, resamples, seed), float(np.nanmean(cells))
    if means.size == 0 or np.ptp(means) <= 1e-9 * (scale[1] - scale[0]):
        return None
    low, high = np.percentile(means, [50 * alpha, 100 - 50 * alpha])
    limits = min(float(low), value), max(float(high), value)  # the estimate may lie outside in rare small cases
    tail = min(np.sum(means <= 0), np.sum(means >= 0)) + 1
    method = f"two-level percentile bootstrap over {len(cells)} seeds, then scenarios, {resamples} resamples"
    return limits, method, min(1.0, 2 * float(tail) / (means.size + 1))
