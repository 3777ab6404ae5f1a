"""What a search knows at a point: settings, the answers so far, and which tests are needed before it can go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sftdiff.errors import SftdiffError
from sftdiff.search_parts import Part, Parts
from sftdiff.search_state import CONFIRM, EXPLORE, TREATMENTS, Answer, Ask, Evidence, Test, trainings


@dataclass(frozen=True)
class Settings:
    """What a search may spend and how sure it has to be.

    Attributes:
        budget: trainings, with those of original and alternative.
        looks: numbers of seeds, growing, at which a verification is looked at.
        explore_looks: the same of the tests that direct the search.
        alpha: error rate of the verdict.
        explore_alpha: error rate of each look at a test that directs the search.
        gone, remains: transfers below and above which the trait counts as gone and as remaining.
        orders: locators, the best first, whose first rows are tried inside sources; the hash order comes last.
        smallest: rows below which no part is made; None: no search inside sources.
    """

    budget: int
    looks: tuple[int, ...] = (3, 5, 8)
    explore_looks: tuple[int, ...] = (2, 3, 5)
    alpha: float = 0.05
    explore_alpha: float = 0.3
    gone: float = 1 / 3
    remains: float = 2 / 3
    orders: tuple[str, ...] = ()
    smallest: int | None = None

    def __post_init__(self) -> None:
        for looks in (self.looks, self.explore_looks):
            if not looks or list(looks) != sorted(set(looks)) or looks[0] < 1:
                raise SftdiffError(f"the looks of a search must be growing numbers of seeds, not {', '.join(map(str, looks))}")
        if not (0 < self.alpha < 1 and 0 < self.explore_alpha < 1 and self.gone <= self.remains):
            raise SftdiffError("a search needs error rates between 0 and 1, and gone at most remains")
        if self.smallest is not None and self.smallest < 1:
            raise SftdiffError(f"the smallest part of a search must have a row at least, not {self.smallest}")
        if self.budget < self.verification:
            raise SftdiffError(f"a search needs a budget of more than the {self.verification} trainings of one verification")

    @property
    def verification(self) -> int:
        """Trainings of one verification at its first look: three treatments, random controls of each, and both references."""
        return (2 * len(TREATMENTS) + 2) * self.looks[0]

    @property
    def middle(self) -> float:
        """The transfer that parts what directs a search: the trait is mostly there, or mostly not."""
        return (self.gone + self.remains) / 2


class NeedsError(Exception):
    """The search cannot go on without answers to these."""

    def __init__(self, asks: list[Ask]) -> None:
        super().__init__()
        self.asks = asks


class SpentError(Exception):
    """The budget does not reach for the tests that come next."""


class Known:
    """The answers that count at one point of a search. Asking for what they do not tell ends the pass with NeedsError."""

    def __init__(
        self,
        sources: Mapping[str, int],
        settings: Settings,
        answers: Sequence[Answer],
        verified: Sequence[int] = (),
        failed: int = 0,
    ) -> None:
        """What an exploration may know: the verifications before it, the last one first, and all explorations.

        For each verification that failed, tests of the exploration count from one look later on.
        """
        self.sources, self.settings, self.answers = sources, settings, answers
        self.all: Parts = frozenset(Part(name) for name in sources)
        self.looks = settings.explore_looks[min(failed, len(settings.explore_looks) - 1) :]
        earlier = [[a for a in answers if a.purpose == f"{CONFIRM} {number}"] for number in reversed(verified)]
        self.explored = [a for a in answers if a.purpose == EXPLORE and len(a.seeds) >= self.looks[0]]
        self.evidence = Evidence([*(a for each in earlier for a in each), *self.explored], sources, self.looks[-1])

    def need(self, asks: list[Ask], reserve: int = 0) -> None:
        """End this pass until these are answered; raises SpentError where the budget, less a reserve, does not reach."""
        if trainings([*self.answers, *asks]) + reserve > self.settings.budget:
            raise SpentError
        raise NeedsError(asks)

    def explore(self, tests: Sequence[Test]) -> None:
        """Ask for the next look at tests that direct the search; enough for one verification is kept back."""
        asks = [Ask(test, self.seeds_for(test, EXPLORE), self.settings.explore_alpha) for test in tests]
        self.need(asks, self.settings.verification)

    def seeds_for(self, test: Test, purpose: str) -> tuple[int, ...]:
        """The seeds of the first look at which a test was not answered yet. A verification has seeds of its own."""
        looks, first = (self.looks, 0) if purpose == EXPLORE else (self.settings.looks, self.looks[-1])
        done = max((len(a.seeds) for a in self.answers if a.test == test and a.purpose == purpose), default=0)
        return tuple(range(first, first + next((look for look in looks if look > done), looks[-1])))

    def above(self, *questions: tuple[Parts, float]) -> list[bool]:
        """Whether the transfers of sets that keep the original rollouts lie above cuts; asks for all that is not known."""
        found = [kept == self.all or self.evidence.above(kept, cut) for kept, cut in questions]
        unknown = [self.named(kept) for (kept, _), each in zip(questions, found, strict=True) if each is None]
        if unknown:
            self.explore(list(dict.fromkeys(unknown)))
        return [bool(each) for each in found]

    def random_above(self, rows: int, cut: float) -> bool:
        """The same of random rows that are swapped in."""
        test = Test("in", random_rows=rows)
        looks = (answer.above(cut, len(answer.seeds) >= self.looks[-1]) for answer in self.explored if answer.test == test)
        known = next((each for each in looks if each is not None), None)
        if known is None:
            self.explore([test])
        return bool(known)

    def named(self, kept: Parts) -> Test:
        """Name what keeps the original rollouts in one way only, so that nothing is trained twice: of whole sources the fewer."""
        if not kept or (kept <= self.all and 2 * len(kept) > len(self.all)):
            return Test("out", tuple(sorted(self.all - kept)))
        return Test("in", tuple(sorted(kept)))
