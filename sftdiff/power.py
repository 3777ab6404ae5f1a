"""The smallest difference that a comparison can find, before it is run."""

import math
from statistics import NormalDist

from sftdiff.bootstrap import BOOTSTRAP_SEEDS
from sftdiff.limits import normal_quantile
from sftdiff.spread import student


def minimum_detectable_difference(
    scenarios: int, spread: float, power: float = 0.8, alpha: float = 0.05, seeds: int = 1, repeated: float = 0.0
) -> float:
    """Smallest true mean difference that a two-sided paired test finds with the given power.

    One seed: the normal approximation, (z(1 - alpha/2) + z(power)) * spread / sqrt(scenarios) (e.g. Chow, Shao and Wang,
    Sample Size Calculations in Clinical Research, section 3.1). With several, whose true effects are taken as alike, the
    repeated part of the variance falls with their number, and the quantile is that of the interval they will get.

    Args:
        scenarios: number of paired scenarios, at least 1.
        spread: standard deviation of a paired difference for one seed, in the units of the scores, 0 or more.
        power: probability of finding it, in (alpha, 1).
        alpha: two-sided error rate, in (0, 1).
        seeds: number of training seeds of each arm, at least 1.
        repeated: the share of the variance `spread`**2 that another seed draws anew, 0 to 1; the rest is the scenarios' own.

    Returns:
        The difference, in the units of `spread`.

    Raises:
        ValueError: an argument outside its range.
    """
    if scenarios < 1 or seeds < 1:
        raise ValueError(f"scenarios and seeds must be at least 1, not {scenarios} and {seeds}")
    if not (math.isfinite(spread) and spread >= 0):
        raise ValueError(f"spread must be a finite number, 0 or more, not {spread}")
    if not 0 < alpha < power < 1:
        raise ValueError(f"0 < alpha < power < 1 is needed, not alpha {alpha} and power {power}")
    if not 0 <= repeated <= 1:
        raise ValueError(f"repeated must lie in 0 to 1, not {repeated}")
    drawn, own = repeated / seeds, 1 - repeated
    quantile = normal_quantile(alpha)
    if 1 < seeds < BOOTSTRAP_SEEDS and scenarios > 1:
        quantile = (drawn * student(alpha, seeds - 1) + own * student(alpha, scenarios - 1)) / (drawn + own)
    return (quantile + NormalDist().inv_cdf(power)) * spread * math.sqrt((drawn + own) / scenarios)
