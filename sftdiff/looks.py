"""When to look at an arm's transfer again with more seeds, at which error rate, and what this saves.

Seeds are added in rounds to a planned cumulative number, and after each round the arms that are not resolved are tested again
on all their seeds. A call stands as soon as it is made. Looking K times at the error rate alpha would be wrong more often than
alpha, so each planned look gets alpha / K. Of all K limits one misses the truth with a probability of at most the sum of their
error rates (Boole's inequality), which is alpha; this needs nothing of how the looks depend on each other, on which arms went
on, or on why a diff was stopped early, since limits that were never computed cannot be wrong. Group sequential boundaries
(Pocock 1977, O'Brien and Fleming 1979, both Biometrika) spend less for normal scores whose variance is known; with 3 to 8
seeds it is not, and their correlation of looks does not hold for score limits.

The promise is for each arm. For all of a family of M arms together, plan with alpha / M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sftdiff.decisions import UNRESOLVED

ENDS = ("original", "alternative")  # every transfer is measured between these


@dataclass(frozen=True)
class Looks:
    """The planned looks.

    Attributes:
        seeds: seeds of each arm at each look, cumulative, rising.
        alpha: error rate of all looks at one arm together.
    """

    seeds: tuple[int, ...] = (3, 5, 8)
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not self.seeds or self.seeds[0] < 1 or list(self.seeds) != sorted(set(self.seeds)):
            raise ValueError(f"seeds of looks must be whole numbers from 1 on that rise, not {list(self.seeds)}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, not {self.alpha}")

    def alpha_at(self, look: int) -> float:
        """The error rate of one look, counted from 0. Raises IndexError where no such look is planned."""
        self._check(look)
        return self.alpha / len(self.seeds)

    def spent(self, look: int) -> float:
        """The error spent once this look, counted from 0, has been taken."""
        self._check(look)
        return self.alpha * (look + 1) / len(self.seeds)

    def _check(self, look: int) -> None:
        if not 0 <= look < len(self.seeds):
            raise IndexError(f"look {look} is not planned: there are {len(self.seeds)}, counted from 0")


@dataclass(frozen=True)
class Round:
    """What the next look needs.

    Attributes:
        seeds: the cumulative number of seeds that each of the arms is brought to.
        arms: the arms that are trained on, original and alternative first.
        left_out: unresolved arms for which the budget does not suffice.
        trainings: how many trainings that takes.
    """

    seeds: int
    arms: tuple[str, ...]
    left_out: tuple[str, ...]
    trainings: int


def next_seeds(
    calls: Mapping[str, str], looks: Looks, look: int, budget: int | None = None, missing: Mapping[str, int] | None = None
) -> Round | None:
    """The round after a look: unresolved arms, and original and alternative, which every transfer needs.

    Args:
        calls: the call of each arm so far; those of original and alternative are not read.
        looks: the plan.
        look: the look that was taken last, counted from 0; -1 before the first.
        budget: trainings that are left; arms are taken in the order of `calls` while it lasts. None: no limit.
        missing: trainings that an arm lacks for the next look, where that is not the number of seeds added since the last one:
            arms that share a training with another, or were planned late.

    Returns:
        None where every arm is resolved, no look is left, or the budget does not bring a single arm to the next look.
    """
    if look < -1:
        raise IndexError(f"look {look} is not planned: looks are counted from 0, -1 is before the first")
    wanted = [arm for arm, call in calls.items() if call == UNRESOLVED and arm not in ENDS]
    if not wanted or look + 1 >= len(looks.seeds):
        return None
    seeds = looks.seeds[look + 1]
    added = seeds - (looks.seeds[look] if look >= 0 else 0)
    cost = {arm: (missing or {}).get(arm, added) for arm in (*ENDS, *wanted)}
    spent, arms, left_out = sum(cost[arm] for arm in ENDS), list(ENDS), []
    for arm in wanted:
        if budget is None or spent + cost[arm] <= budget:
            spent += cost[arm]
            arms.append(arm)
        else:
            left_out.append(arm)
    return Round(seeds, tuple(arms), tuple(left_out), spent) if len(arms) > len(ENDS) else None


@dataclass(frozen=True)
class Savings:
    """Trainings that were used beside those of the fixed grid, which gives every arm the seeds of the last look."""

    used: int
    grid: int

    @property
    def saved(self) -> int:
        return self.grid - self.used

    @property
    def share(self) -> float:
        return self.saved / self.grid if self.grid else 0.0


def savings(trained: Mapping[str, int], looks: Looks) -> Savings:
    """What looking early saved: `trained` holds the seeds that each arm (original and alternative too) got in the end."""
    return Savings(sum(trained.values()), len(trained) * looks.seeds[-1])
