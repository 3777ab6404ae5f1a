"""How often do 95 % intervals hold the true value? Simulated sweeps whose truth is known.

    python -m tests.bench.coverage [REPEATS]

Replies of I seeds to J scenarios: a seed effect, a scenario effect and a draw for each reply. Shares: the effects are added to
the logit. Ratings: they are added to a normal number with standard deviation 2, which is rounded and cut to 0..10; with mean -2
before the cut, 85 % are 0. Differences: both arms share the scenario effects and half of their variance again is each arm's own;
the baseline has as many seeds, or is one untrained student. Prints the coverage by case, at worst over a group, and a last line
`ratio R`: the worst distance from 95 %, where the truth is at least 5 % or half a point, in units of 2 percentage points.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import hypot

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from sftdiff.stats import Interval, difference, level

Cells = NDArray[np.float64]
SCALES = {"share": (0.0, 1.0), "rating": (0.0, 10.0)}
NOISE = 2.0  # of a rating, before it is cut


@dataclass(frozen=True)
class Case:
    """One kind of sweep. `at` is a share, or a rating's mean before the cut; `other` the baseline's, None for a level."""

    kind: str
    seeds: int
    scenarios: int
    at: float
    seed_sd: float
    scenario_sd: float
    other: float | None = None
    single: bool = False  # the baseline is one untrained student


def mean_of(kind: str, centre: float, sd: float) -> float:
    """The true mean over seeds and scenarios whose effects have this standard deviation together."""
    if kind == "rating":
        steps = np.arange(1, 11) - 0.5
        return float(np.sum(1 - ndtr((steps - centre) / hypot(sd, NOISE))))
    normal = np.linspace(-7, 7, 2001)
    weights = np.exp(-(normal**2) / 2)
    return float(np.sum(weights * expit(centre + sd * normal)) / np.sum(weights))


def centre_of(kind: str, at: float, sd: float) -> float:
    """The logit at which a share is as wanted; a rating's centre is given as it is."""
    if kind == "rating":
        return at
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_of(kind, middle, sd) < at else (low, middle)
    return low


def replies(case: Case, centre: float, scenarios: Cells, seeds: int, seed_sd: float, rng: np.random.Generator) -> Cells:
    """Scores of shape (repeats, seeds, scenarios); `scenarios` are their effects, shape (repeats, 1, scenarios)."""
    effects = centre + scenarios + seed_sd * rng.standard_normal((len(scenarios), seeds, 1))
    shape = (len(scenarios), seeds, case.scenarios)
    if case.kind == "share":
        return (rng.random(shape) < expit(effects)).astype(np.float64)
    return np.clip(np.round(effects + NOISE * rng.standard_normal(shape)), 0, 10)


def intervals(case: Case, repeats: int, rng: np.random.Generator) -> tuple[float, list[Interval]]:
    """The true value and the interval of each simulated sweep."""
    shape, scale = (repeats, 1, case.scenarios), SCALES[case.kind]
    shared = case.scenario_sd * rng.standard_normal(shape)
    if case.other is None:
        sd = hypot(case.seed_sd, case.scenario_sd)
        centre = centre_of(case.kind, case.at, sd)
        drawn = replies(case, centre, shared, case.seeds, case.seed_sd, rng)
        return mean_of(case.kind, centre, sd), [level(cells, case.kind, scale, 200, 0) for cells in drawn]
    sides, truths = [], []
    for at, single in ((case.at, False), (case.other, case.single)):
        own, seed_sd = case.scenario_sd / 2**0.5, 0.0 if single else case.seed_sd
        sd = hypot(seed_sd, case.scenario_sd, own)
        centre = centre_of(case.kind, at, sd)
        effects = shared + own * rng.standard_normal(shape)
        sides.append(replies(case, centre, effects, 1 if single else case.seeds, seed_sd, rng))
        truths.append(mean_of(case.kind, centre, sd))
    pairs = zip(*sides, strict=True)
    return truths[0] - truths[1], [difference(arm, base, case.kind, scale, 200, 0) for arm, base in pairs]


def coverage(case: Case, repeats: int, seed: int) -> float:
    """The share of intervals that hold the truth."""
    truth, found = intervals(case, repeats, np.random.default_rng(seed))
    return float(np.mean([each.low <= truth <= each.high for each in found]))


def level_cases(seeds: int, scenarios: int) -> Iterator[Case]:
    for at, seed_sd, scenario_sd in product((0.02, 0.05, 0.1, 0.2, 0.5), (0.0, 0.5, 1.0), (1.0, 2.0)):
        yield Case("share", seeds, scenarios, at, seed_sd, scenario_sd)
    for at, seed_sd in product((-2.0, 0.0, 3.0), (0.0, 0.5, 1.0)):
        yield Case("rating", seeds, scenarios, at, seed_sd, 1.5)


def difference_cases(seeds: int, scenarios: int) -> Iterator[Case]:
    for (at, other), seed_sd, single in product(((0.05, 0.05), (0.2, 0.1), (0.5, 0.2)), (0.0, 0.5), (False, True)):
        yield Case("share", seeds, scenarios, at, seed_sd, 1.0, other, single)
    for (at, other), seed_sd, single in product(((-2.0, -2.0), (0.0, 0.0), (3.0, 0.0)), (0.0, 0.5), (False, True)):
        yield Case("rating", seeds, scenarios, at, seed_sd, 1.5, other, single)


def main(repeats: int) -> None:
    worst = 0.0
    for seeds, scenarios in product((1, 2, 3, 5), (20, 40, 60)):
        groups: dict[str, list[float]] = {}
        for number, case in enumerate([*level_cases(seeds, scenarios), *difference_cases(seeds, scenarios)]):
            if seeds == 1 and case.seed_sd:
                continue  # one training says nothing of others
            held = 100 * coverage(case, repeats if case.other is None else repeats // 2, number)
            name = f"{case.kind} {case.at:g}" + ("" if case.other is None else f" minus {case.other:g}")
            groups.setdefault(name, []).append(held)
            if seeds > 2 and (case.kind, case.at) != ("share", 0.02):
                worst = max(worst, abs(held - 95) / 2)
        for name, found in groups.items():
            least, mean, most = min(found), sum(found) / len(found), max(found)
            print(f"{seeds} seeds x {scenarios} scenarios, {name}: {least:.1f} to {most:.1f} %, mean {mean:.1f}", flush=True)
    print(f"ratio {worst:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
