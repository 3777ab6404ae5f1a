"""What a sweep will be able to tell, before it is run: the smallest trait difference that it can detect."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from launch.plan import Plan, traits
from sftdiff.power import minimum_detectable_difference
from sftdiff.traits import load_trait

POWER = 0.8
# Assumed, since nothing is measured yet: a trait that shows in 15 % of the replies; ratings that vary by 2 of 10 points; and
# that a fifth of this variance is the scenario's own in each arm. More replies and seeds average out the rest only: a hundred
# samples of one scenario are not a hundred scenarios.
SHARE, RATING_SPREAD, OWN = 0.15, 2.0, 0.2


def detectable(plan: Plan) -> list[tuple[str, float, str]]:
    """Return (title, difference, unit) for each trait: the smallest difference of two arms that is found at 80 % power.

    Replies to a scenario are taken as independent but for what is the scenario's own, and seeds as alike, so arms whose seeds
    differ much need more.
    """
    cells = [cell for cell in plan.cells if cell.trained] or plan.cells
    arms = Counter(cell.arm for cell in cells)
    found = {}
    for name, settings in traits(cells[0].config).items():
        found[name] = (settings["title"], *_difference(name, settings, arms[cells[0].arm]))
    return list(found.values())


def _difference(name: str, settings: Mapping[str, Any], seeds: int) -> tuple[float, str]:
    scenarios = len(load_trait(name, settings["suite"], settings["scenarios"]).scenarios)
    is_share = settings["kind"] == "share"
    reply = math.sqrt(SHARE * (1 - SHARE)) if is_share else RATING_SPREAD
    drawn = (1 - OWN) / settings["samples"]
    spread = reply * math.sqrt(2 * (OWN + drawn))
    difference = minimum_detectable_difference(scenarios, spread, POWER, seeds=seeds, repeated=drawn / (OWN + drawn))
    return (min(100 * difference, 100.0), "points") if is_share else (min(difference, 10.0), "of 10")


def detectable_line(plan: Plan) -> str:
    """Return the forecast as one line."""
    shown = ", ".join(f"{title} {value:.0f} {unit}" if unit == "points" else f"{title} {value:.1f} {unit}"
                      for title, value, unit in detectable(plan))  # fmt: skip
    return (
        f"Smallest difference between two arms that is found at {POWER:.0%} power: {shown} "
        f"(if a trait shows in {SHARE:.0%} of replies, ratings vary by {RATING_SPREAD:.0f}, {OWN:.0%} of the variance is the "
        "scenarios' own, and seeds are alike; with one seed it holds for that training alone)"
    )
