"""What a sweep will be able to tell, before it is run: the smallest trait difference that it can detect."""

import math
from collections.abc import Mapping
from typing import Any

from launch.plan import Plan, traits
from sftdiff.stats import minimum_detectable_difference
from sftdiff.traits import load_trait

POWER = 0.8
# Assumed, since nothing is measured yet: a trait that shows in 15 % of the replies; ratings that vary by 2 of 10 points.
SHARE, RATING_SPREAD = 0.15, 2.0


def detectable(plan: Plan) -> list[tuple[str, float, str]]:
    """Return (title, difference, unit) for each trait: the smallest difference of two arms that is found at 80 % power.

    Replies are taken as independent and seeds as alike, so arms whose seeds differ much need more.
    """
    trained = [cell for cell in plan.cells if not cell.untrained] or plan.cells
    seeds = min((sum(c.arm == cell.arm for c in trained) for cell in trained[:1]), default=1)
    found = {}
    for name, settings in traits(trained[0].config).items():
        found[name] = (settings["title"], *_difference(name, settings, seeds))
    return list(found.values())


def _difference(name: str, settings: Mapping[str, Any], seeds: int) -> tuple[float, str]:
    scenarios = len(load_trait(name, settings["suite"], settings["scenarios"]).scenarios)
    is_share = settings["kind"] == "share"
    reply = math.sqrt(SHARE * (1 - SHARE)) if is_share else RATING_SPREAD
    spread = reply * math.sqrt(2 / (settings["samples"] * seeds))
    difference = minimum_detectable_difference(scenarios, spread, POWER)
    return (min(100 * difference, 100.0), "points") if is_share else (min(difference, 10.0), "of 10")


def detectable_line(plan: Plan) -> str:
    """Return the forecast as one line."""
    shown = ", ".join(f"{title} {value:.0f} {unit}" if unit == "points" else f"{title} {value:.1f} {unit}"
                      for title, value, unit in detectable(plan))  # fmt: skip
    return (
        f"Smallest difference between two arms that is found at {POWER:.0%} power: {shown} "
        f"(if a trait shows in {SHARE:.0%} of replies, ratings vary by {RATING_SPREAD:.0f}, and seeds are alike)"
    )
