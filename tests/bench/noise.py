"""What a diff makes of a gap that is chance alone: how often one is seen, and what is then supported.

    python -m tests.bench.noise [DIFFS]

Every training of original, alternative and all arms is a draw of the same distribution, so that no hypothesis is true and every
support is false. "steady": a training's level is 50 % give or take 10 points; "fickle": give or take 25; "all or nothing": it
shows the trait in all scenarios or in none, by a coin. 48 scenarios answered once by each training, looks at 3, 5 and 8 seeds,
as `python -m sftdiff.diff` takes them. Arms are drawn only where the original is called higher. Prints for each the share of
diffs that see a gap, the hypotheses supported in those, and in all; a last line `ratio R`: the worst share of diffs that support
anything over 5 %.
"""

import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sftdiff import stats
from sftdiff.compare import SCALES
from sftdiff.decisions import load_decisions
from sftdiff.diffing import gap_call
from sftdiff.hypotheses import verdict
from sftdiff.rounds import PAIR
from sftdiff.transfer import RESAMPLES, Bounds, call_transfer, transfer

LOOKS, SCENARIOS, SMALLEST_EFFECT = (3, 5, 8), 48, 0.1
ALPHA = 0.05 / len(LOOKS)
Cells = NDArray[np.float64]
Levels = Callable[[np.random.Generator], NDArray[np.float64]]
NOISE: dict[str, Levels] = {
    "steady": lambda draw: draw.normal(0.5, 0.1, LOOKS[-1]),
    "fickle": lambda draw: draw.normal(0.5, 0.25, LOOKS[-1]),
    "all or nothing": lambda draw: draw.integers(0, 2, LOOKS[-1]).astype(float),
}


def trainings(levels: Levels, scenario: Cells, draw: np.random.Generator) -> Cells:
    """Return the scores of one arm, (seeds, scenarios); `scenario` effects are those of all arms."""
    return (draw.random((LOOKS[-1], SCENARIOS)) < levels(draw)[:, None] + scenario).astype(float)


def seen_at(original: Cells, alternative: Cells) -> int | None:
    """Return the look at which the original is called higher; None where it is not."""
    for look, seeds in enumerate(LOOKS):
        gap = stats.difference(original[:seeds], alternative[:seeds], "share", SCALES["share"], RESAMPLES, 0, alpha=ALPHA)
        if (call := gap_call(gap, SMALLEST_EFFECT)) != "unresolved":
            return look if call == "higher" else None
    return None


def called(arm: Cells, alternative: Cells, original: Cells, first: int) -> str:
    """Return the call of an arm, from the look on at which the gap was seen."""
    call = "unresolved"
    for seeds in LOOKS[first:]:
        found = transfer(arm[:seeds], alternative[:seeds], original[:seeds], "share", SCALES["share"], ALPHA)
        if (call := call_transfer(found, Bounds())) != "unresolved":
            break
    return call


def supported(levels: Levels, draw: np.random.Generator) -> list[str] | None:
    """Return what one diff supports; None where it sees no gap, and stops."""
    scenario = draw.normal(0, 0.1, SCENARIOS)
    alternative, original = (trainings(levels, scenario, draw) for _ in range(2))
    first = seen_at(original, alternative)
    if first is None:
        return None
    table = load_decisions()
    arms = [arm for arm in table.arms if arm not in PAIR]
    calls = {arm: called(trainings(levels, scenario, draw), alternative, original, first) for arm in arms}
    return verdict(table, calls).labels("supported")


def main(diffs: int) -> None:
    """Print the table."""
    worst = 0.0
    for name, levels in NOISE.items():
        draw = np.random.default_rng(11)
        found = [own for _ in range(diffs) if (own := supported(levels, draw)) is not None]
        false = sum(bool(own) for own in found)
        counts = Counter(label for own in found for label in own)
        named = ", ".join(f"{label} {count}" for label, count in sorted(counts.items())) or "none"
        print(f"{name}: a gap in {len(found)} of {diffs} diffs ({len(found) / diffs:.1%}); in {false} of these something is "
              f"supported ({named}): {false / diffs:.2%} of all diffs")  # fmt: skip
        worst = max(worst, false / diffs)
    print(f"ratio {worst / 0.05:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
