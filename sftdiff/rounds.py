"""The rounds of a diff: which arms are trained with how many seeds next, given the looks that were taken. Pure.

An arm is looked at when it has the seeds of its next look. At each look its call is made at an equal share of the error rate; a
call that is made stands, and an unresolved arm gets the seeds of the next look. The difference of the two pipelines is looked at
in the same way, before the arms: where it is not there, no arm has a transfer.

Of K looks, each at the error rate alpha / K, one misses the truth with a probability of at most alpha (Boole's inequality). That
needs nothing of how the looks depend on each other, nor of which arms went on or why a diff ended early. Boundaries that spend
less (Pocock 1977, O'Brien and Fleming 1979, both Biometrika) take normal scores of known variance; with 3 to 8 seeds it is not
known. The promise is for each arm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DIFFERENCE = "difference"  # of original and alternative: looked at beside the arms
PAIR = ("original", "alternative")
OPEN = "unresolved"

Look = dict[str, Any]  # at least "look" (0 for the first), "seeds", "call"; "stop": more seeds would not resolve it
Looks = Mapping[str, Mapping[str, Sequence[Look]]]  # trait -> arm, or DIFFERENCE -> the looks taken, in order


@dataclass(frozen=True)
class Schedule:
    """What a diff may train.

    Attributes:
        arms: the names of the arms beside the pair, those that matter most first.
        seeds: training seeds of an arm at each look, growing.
        budget: trainings at most, of all arms together; None: no limit.
        difference_first: whether the arms wait for the difference of the pair.
        most: training seeds of an arm at most, where it gets fewer than the looks would give it.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: int | None = None
    difference_first: bool = True
    most: Mapping[str, int] = field(default_factory=dict)

    def last(self, arm: str) -> int:
        """Return the training seeds of an arm at its last look."""
        return min(self.seeds[-1], self.most.get(arm, self.seeds[-1]))


def next_round(looks: Looks, trained: Mapping[str, int], schedule: Schedule) -> dict[str, int]:
    """Return arm -> training seeds that it is to have in all, for all arms of the next round; {} when nothing is left to do.

    `trained` says how many seeds each arm has. Arms that a budget does not leave room for are not in the round.
    """
    wanted = dict[str, int]()
    for own in looks.values():
        for name in (DIFFERENCE, *schedule.arms):
            if name == DIFFERENCE or _waits_no_more(own, schedule):
                seeds = _next_seeds(name, own.get(name, ()), schedule)
                wanted[name] = max(wanted.get(name, 0), seeds)
    found, left = dict[str, int](), None if schedule.budget is None else schedule.budget - sum(trained.values())
    for name in (DIFFERENCE, *schedule.arms):
        if not (seeds := wanted.get(name, 0)):
            continue
        needed = dict.fromkeys(PAIR if name == DIFFERENCE else (*PAIR, name), seeds)
        cost = sum(max(count - max(trained.get(arm, 0), found.get(arm, 0)), 0) for arm, count in needed.items())
        if left is not None and cost > left:
            continue
        left = None if left is None else left - cost
        found |= {arm: max(count, found.get(arm, 0)) for arm, count in needed.items()}
    return found


def _waits_no_more(own: Mapping[str, Sequence[Look]], schedule: Schedule) -> bool:
    taken = own.get(DIFFERENCE, ())
    return not schedule.difference_first or (bool(taken) and taken[-1]["call"] == "higher")


def _next_seeds(name: str, taken: Sequence[Look], schedule: Schedule) -> int:
    """Return the seeds of the next look, or 0: the call is made, or no look is left."""
    if len(taken) == len(schedule.seeds) or (taken and (taken[-1]["call"] != OPEN or taken[-1].get("stop"))):
        return 0
    last = schedule.last(name)
    return 0 if taken and taken[-1]["seeds"] >= last else min(schedule.seeds[len(taken)], last)


def due(own: Mapping[str, Sequence[Look]], trained: Mapping[str, int], schedule: Schedule) -> dict[str, int]:
    """Return what of one trait can be looked at now, and the seeds of that look."""
    ready = dict[str, int]()
    for name in (DIFFERENCE, *schedule.arms):
        seeds = _next_seeds(name, own.get(name, ()), schedule)
        if name != DIFFERENCE and DIFFERENCE not in ready and not own.get(DIFFERENCE):
            break  # the pair has fewer seeds than its look takes, though an arm may have all of its own
        needed = PAIR if name == DIFFERENCE else (*PAIR, name)
        if seeds and all(trained.get(arm, 0) >= seeds for arm in needed):
            ready[name] = seeds
    return ready


def spent(taken: Sequence[Look]) -> float:
    """Return the error rate that the looks at one arm have used."""
    return float(sum(look["alpha"] for look in taken))


def grid(schedule: Schedule) -> int:
    """Return the trainings of the fixed grid, in which every arm has the seeds of the last look."""
    return sum(schedule.last(arm) for arm in (*PAIR, *schedule.arms))


def saved(trained: Mapping[str, int], schedule: Schedule) -> int:
    """Return how many trainings fewer than the fixed grid there are."""
    return grid(schedule) - sum(trained.values())
