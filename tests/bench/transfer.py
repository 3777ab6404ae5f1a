"""How often do the limits of a transfer hold the true one, and how often is its call wrong? Simulated arms whose truth is known.

    python -m tests.bench.transfer [REPEATS]

Replies of I seeds to J scenarios as in `tests.bench.coverage`: alternative, original and arm share the scenario effects, half
of their variance again is each one's own, and each training has an effect of its own. The alternative's level is 2 % of the
scale (and 30 %, where the gap leaves room), the original's is a gap above it, the arm's lies between them by the true transfer.
"planted" are students that never show the trait (alternative), always do (original), and an arm that does in a share of
scenarios, the same at each seed. A call is wrong where it is none that the true transfer bears: gone below 1/3, partial, remains
above 2/3; with a gap of 0 every call is wrong. Prints for groups of cases in how many of 100 diffs the 95 % limits hold the truth
(where there is a gap), and how many calls are made and wrong; a last line `ratio R`: the worst rate of wrong calls over 5 %.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import hypot

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from sftdiff.transfer import Bounds, Transfer, call_transfer, transfer
from tests.bench.coverage import SCALES, Case, mean_of, replies

Cells = NDArray[np.float64]
SCENARIO_SD = {"share": 1.0, "rating": 1.5}
FLOOR = 0.02  # the alternative's level
BOUNDS = Bounds()


@dataclass(frozen=True)
class Sweep:
    """One kind of diff: levels in units of the scale; `planted` students answer each scenario always alike."""

    kind: str
    seeds: int
    scenarios: int
    floor: float
    gap: float
    truth: float
    seed_sd: float = 0.0
    planted: bool = False


@cache
def centre(kind: str, at: float, sd: float) -> float:
    """Where the effects must be centred for this mean, in units of the scale."""
    width = SCALES[kind][1]
    return float(brentq(lambda x: mean_of(kind, x, sd) - at * width, -40, 40, xtol=1e-9))


def drawn(sweep: Sweep, repeats: int, rng: np.random.Generator) -> list[Cells]:
    """Scores of arm, alternative and original, shape (repeats, seeds, scenarios) each."""
    shape = (repeats, 1, sweep.scenarios)
    if sweep.planted:
        shown = (rng.random(shape) < sweep.truth) * np.ones((1, sweep.seeds, 1))
        return [shown * SCALES[sweep.kind][1], np.zeros(shown.shape), np.full(shown.shape, SCALES[sweep.kind][1])]
    sd = SCENARIO_SD[sweep.kind]
    shared, own, sides = sd * rng.standard_normal(shape), sd / 2**0.5, []
    for at in (sweep.floor + sweep.truth * sweep.gap, sweep.floor, sweep.floor + sweep.gap):
        case = Case(sweep.kind, sweep.seeds, sweep.scenarios, at, sweep.seed_sd, sd)
        middle = centre(sweep.kind, at, hypot(sweep.seed_sd, sd, own))
        sides.append(replies(case, middle, shared + own * rng.standard_normal(shape), sweep.seeds, sweep.seed_sd, rng))
    return sides


def transfers(sweep: Sweep, repeats: int, seed: int, alpha: float = 0.05) -> list[Transfer]:
    """The transfer of each simulated diff."""
    sides = drawn(sweep, repeats, np.random.default_rng(seed))
    return [transfer(*each, sweep.kind, SCALES[sweep.kind], alpha) for each in zip(*sides, strict=True)]


def right(truth: float) -> set[str]:
    """The calls that a true transfer bears; at a bound none."""
    if truth < BOUNDS.gone:
        return {"gone"}
    return {"remains"} if truth > BOUNDS.remains else {"partial"} if BOUNDS.gone < truth < BOUNDS.remains else set()


def rates(sweep: Sweep, repeats: int, seed: int) -> tuple[float, float, float]:
    """The shares of diffs whose limits hold the truth, that are called, and that are called wrongly."""
    found = transfers(sweep, repeats, seed)
    calls = [call_transfer(each, BOUNDS) for each in found]
    made = [each for each in calls if each != "unresolved"]
    wrong = [each for each in made if not sweep.gap or each not in right(sweep.truth)]
    held = [each.low <= sweep.truth <= each.high for each in found]
    return float(np.mean(held)), len(made) / repeats, len(wrong) / repeats


def sweeps(kind: str, seeds: int, scenarios: int) -> Iterator[Sweep]:
    seed_sds = (0.0,) if seeds == 1 else (0.0, 1.0)
    for gap, truth, seed_sd in product((0.1, 0.3, 0.6, 0.9), (0.0, 0.2, 0.5, 1.0), seed_sds):
        yield Sweep(kind, seeds, scenarios, FLOOR, gap, truth, seed_sd)
    for truth, seed_sd in product((0.0, 0.5, 1.0), seed_sds):
        yield Sweep(kind, seeds, scenarios, 0.3, 0.3, truth, seed_sd)
    for floor, seed_sd in product((FLOOR, 0.3), seed_sds):
        yield Sweep(kind, seeds, scenarios, floor, 0.0, 0.0, seed_sd)
    for truth in (0.0, 0.2, 0.5, 1.0):
        yield Sweep(kind, seeds, scenarios, 0.0, 1.0, truth, planted=True)


def name_of(sweep: Sweep) -> str:
    """The line that a sweep's rates go into."""
    if sweep.planted or not sweep.gap:
        return "planted" if sweep.planted else f"floor {sweep.floor:g}, gap 0"
    return f"floor {sweep.floor:g}, gap {sweep.gap:g}, transfer {'0 or 1' if sweep.truth in (0, 1) else '0.2 or 0.5'}"


def main(repeats: int) -> None:
    worst = 0.0
    for kind, seeds, scenarios in product(("share", "rating"), (1, 3, 5), (20, 40)):
        rows: dict[str, list[tuple[float, float, float]]] = {}
        for number, sweep in enumerate(sweeps(kind, seeds, scenarios)):
            rows.setdefault(name_of(sweep), []).append(rates(sweep, repeats, number))
        for name, found in rows.items():
            held, made, wrong = ([100 * each for each in column] for column in zip(*found, strict=True))
            worst = max(worst, *wrong)
            hold = (
                "" if name.endswith("gap 0") else f"hold {min(held):.1f} to {max(held):.1f} %, mean {sum(held) / len(held):.1f}, "
            )
            print(f"{kind}, {seeds} x {scenarios}, {name}: {hold}called {min(made):.0f} to {max(made):.0f} %, "
                  f"wrong at most {max(wrong):.1f} %", flush=True)  # fmt: skip
    print(f"ratio {worst / 5:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
