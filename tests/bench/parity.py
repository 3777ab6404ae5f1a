"""Does a sweep that ran on a cluster give what the same sweep gives on one machine?

    python -m tests.bench.parity CLUSTER/report.json LOCAL/report.json

CLUSTER holds one training seed, LOCAL the same arms with that seed and at least two more. Rows, tokens that carry loss, optimizer
steps and, per mixture and source, what was kept, dropped and swapped must be equal. The score of each arm and trait may differ
by what two training seeds differ by on one machine: their 95 % range is t * s * sqrt(2), with the seeds' standard deviation s
pooled over the arms of a trait (one arm has too few seeds of its own) and t of Student's distribution. Exits with 1 if anything
differs by more. The last line is `ratio R`: the largest difference divided by its range.
"""

import json
import math
import sys
from pathlib import Path
from statistics import variance
from typing import Any

from scipy.stats import t as student_t

COUNTS = ("rows", "tokens", "loss_tokens", "optimizer_steps")
Report = dict[str, Any]


def counts(report: Report, seed: int) -> dict[str, dict[str, int]]:
    """Return what one seed of each trained arm was trained on, by arm."""
    cells = {arm["id"]: cell for arm in report["arms"] for cell in arm["cells"] if cell["seed"] == seed}
    return {arm: {name: cell[name] for name in COUNTS} for arm, cell in cells.items()}


def scores(report: Report, trait: str) -> dict[str, dict[str, float]]:
    """Return the level of each seed, by arm."""
    return {level["arm"]: level["per_seed"] for level in report["levels"] if level["trait"] == trait}


def seed_range(by_arm: dict[str, dict[str, float]]) -> float:
    """Return the 95 % range of the difference of two seeds of an arm."""
    seeds = [list(values.values()) for values in by_arm.values() if len(values) > 2]
    freedom = sum(len(values) - 1 for values in seeds)
    pooled = sum(variance(values) * (len(values) - 1) for values in seeds) / freedom
    return float(student_t.ppf(0.975, freedom)) * math.sqrt(2 * pooled)


def main() -> int:
    cluster, local = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    (seed,) = {cell["seed"] for arm in cluster["arms"] for cell in arm["cells"]}
    ours, theirs = counts(cluster, seed), counts(local, seed)
    equal = ours == theirs and cluster["mixtures"] == local["mixtures"] and not cluster["missing"] and not local["missing"]
    print(f"{'arm':<32}" + "".join(f"{name:>16}" for name in COUNTS))
    for arm, found in ours.items():
        print(f"{arm:<32}" + "".join(f"{found[name]:>16,}" for name in COUNTS))
    print("equal on one machine" if equal else f"NOT equal on one machine: {theirs}", end="\n\n")
    print(f"{'trait':<20}{'arm':<32}{'cluster':>9}{'local':>9}{'difference':>12}{'95 % range':>12}")
    worst = 0.0
    for trait in (trait["name"] for trait in cluster["traits"]):
        mine, others = scores(cluster, trait), scores(local, trait)
        limit = seed_range(others)
        for arm, values in mine.items():
            a, b = (found.get(str(seed), next(iter(found.values()))) for found in (values, others[arm]))
            worst = max(worst, abs(a - b) / limit if limit else math.inf if a != b else 0.0)
            print(f"{trait:<20}{arm:<32}{a:>9.3f}{b:>9.3f}{a - b:>12.3f}{limit:>12.3f}")
    print(f"ratio {worst:.2f}")
    return 0 if equal and worst <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
