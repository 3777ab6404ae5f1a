"""A search's tests and answers: plain data, and what the answers so far say about a set that was not tested itself.

The state of a search is the list of its answers, as JSON; everything else follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftdiff.search_parts import Part, Parts, complement, covers

TREATMENTS = ("in", "out", "drop")
EXPLORE = "explore"  # the purpose of a test that only directs the search
CONFIRM = "confirm"  # the purpose of one that a claim rests on, with the number of the set that is verified: "confirm 0"


@dataclass(frozen=True)
class Test:
    """A set that is swapped in, swapped out or dropped, or as many random rows.

    Attributes:
        treatment: in (the set alone has the original rollouts), out (all but the set have) or drop.
        parts: the set, sorted; of one source at most one part where it is swapped out or dropped.
        random_rows: of a random control the number of rows; it has no parts.
    """

    treatment: str
    parts: tuple[Part, ...] = ()
    random_rows: int = 0

    __test__ = False  # not for pytest

    def to_json(self) -> dict[str, Any]:
        if self.random_rows:
            return {"treatment": self.treatment, "random_rows": self.random_rows}
        return {"treatment": self.treatment, "parts": [part.to_json() for part in self.parts]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Test:
        parts = tuple(Part.from_json(part) for part in found.get("parts", ()))
        return cls(str(found["treatment"]), parts, int(found.get("random_rows", 0)))

    def kept(self, sources: Mapping[str, int]) -> Parts | None:
        """The parts that have the original rollouts in this test; None where that is no set of parts."""
        if self.random_rows or self.treatment == "drop":
            return None
        return frozenset(self.parts) if self.treatment == "in" else complement(self.parts, sources)


@dataclass(frozen=True)
class Ask:
    """A test that is wanted: trainings with these seeds, and the transfer's interval at the error rate alpha.

    Seeds that were asked for before are among them. Original and alternative are needed with the same seeds.
    """

    test: Test
    seeds: tuple[int, ...]
    alpha: float
    purpose: str = EXPLORE

    def to_json(self) -> dict[str, Any]:
        return {"test": self.test.to_json(), "seeds": list(self.seeds), "alpha": self.alpha, "purpose": self.purpose}


@dataclass(frozen=True)
class Answer:
    """What a test gave: the transfer, its limits at the error rate that was asked for (infinite: none), and its call."""

    test: Test
    seeds: tuple[int, ...]
    value: float
    low: float
    high: float
    call: str
    purpose: str = EXPLORE

    def above(self, cut: float, last: bool) -> bool | None:
        """Whether the transfer lies above the cut; None if the interval holds it and this is not the last look."""
        if self.low > cut:
            return True
        if self.high < cut:
            return False
        return self.value > cut if last else None

    def to_json(self) -> dict[str, Any]:
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        shown = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        return {"test": self.test.to_json(), "seeds": list(self.seeds), **shown, "call": self.call, "purpose": self.purpose}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Answer:
        missing = {"value": math.nan, "low": -math.inf, "high": math.inf}
        numbers = {name: other if found[name] is None else float(found[name]) for name, other in missing.items()}
        seeds = tuple(int(seed) for seed in found["seeds"])
        return cls(Test.from_json(found["test"]), seeds, **numbers, call=str(found["call"]), purpose=str(found["purpose"]))


def trainings(asked: Iterable[Answer | Ask]) -> int:
    """The number of trainings behind answers: each seed of a test, and original and alternative with each of these seeds."""
    cells = {(each.test, seed) for each in asked for seed in each.seeds}
    return len(cells) + 2 * len({seed for _, seed in cells})


def verification(parts: Sequence[Part], answers: Iterable[Answer]) -> int:
    """Which verification that of a set is: the first one of a search has the number 0."""
    sets = dict.fromkeys(a.test.parts for a in answers if a.purpose.startswith(CONFIRM) and not a.test.random_rows)
    return list(sets).index(tuple(parts)) if tuple(parts) in sets else len(sets)


class Evidence:
    """Answers in the order in which they count; the first one that says something about a question decides it.

    The order makes a search replayable: later answers never change what was decided before. That more rows with the original
    rollouts never make less of the trait is taken as given: what holds of a set holds of the sets around it.
    """

    def __init__(self, answers: Sequence[Answer], sources: Mapping[str, int], last: int) -> None:
        """`last` is the number of seeds after which a test is decided by its estimate."""
        self.facts = [(answer, kept) for answer in answers if (kept := answer.test.kept(sources)) is not None]
        self.last = last

    def above(self, kept: Parts, cut: float) -> bool | None:
        """Whether the transfer of the set that keeps the original rollouts lies above the cut; None: not known yet."""
        for answer, other in self.facts:
            found = answer.above(cut, len(answer.seeds) >= self.last)
            if (found is True and covers(kept, other)) or (found is False and covers(other, kept)):
                return found
        return None
