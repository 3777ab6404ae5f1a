"""The search for the rows behind a trait: which tests to train next, or what was found. Pure: ask, train elsewhere, tell.

A *set* is some sources, or parts of them. Swapped in, it alone keeps the original rollouts; swapped out, all but it do. Wanted
is the smallest set that is sufficient (swapped in, the trait remains) and necessary (swapped out, it is gone).

1. Everything is swapped out: if the trait stays, no set of rollouts carries it. Blocks of sources are swapped in side by side,
   and each that is enough is halved down to one source (binary splitting, Hwang 1972, JASA 67:605). All that was found is
   swapped out: if the trait is gone, all else is cleared at once; if not, more of it is left, and the search goes on there.
2. Where no block is enough, blocks are swapped out, and those without which the trait is gone are halved in the same way.
3. What is still missing acts together. By bisection, block by block and then source by source: the fewest that have to be
   swapped out until the trait is gone, and the fewest to be swapped in until it remains (as minimal explanations are found by
   Junker 2004, AAAI-04:167). If these are more than half of the blocks, the cause is diffuse.
4. The set is verified on *other seeds*: in, out and drop, beside random rows of the same number. `found` means that in remains
   and out is gone, and that not both are so for the random rows. If that fails, the search goes on from these answers.
5. Inside the sources that were found: the half that a locator ranks higher and the other half are swapped in. If only the first
   is enough it takes the source's place, and so on down to the smallest part. The parts are verified as the sources were.

Error control: steps 1 to 3 and 5 direct the search, each look at `explore_alpha`; a false step costs trainings, and step 4 shows
it. The verdict is a conjunction of claims, each tested at the full rate (intersection-union test, Berger 1982, Technometrics
24:295); looks at growing seeds share the rate equally, and set k = 0, 1, ... of those that are verified has `alpha` / 2^(k + 1).
The budget may be raised between two steps: the search goes on from where it ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftdiff.errors import SftdiffError
from sftdiff.search_explore import Explorer, Found
from sftdiff.search_known import Known, NeedsError, Settings, SpentError
from sftdiff.search_parts import Part, size_of
from sftdiff.search_state import CONFIRM, TREATMENTS, Answer, Ask, Test, trainings, verification

ATTEMPTS = 3
CLAIMS = {"in": "remains", "out": "gone"}  # what is claimed of a set; these tests get more seeds until they are resolved
BUDGET = "the budget ended"
STATES = {
    "found": "sufficient and necessary",
    "sufficient": "sufficient, not shown to be necessary",
    "necessary": "necessary, not shown to be sufficient",
    "unresolved": "neither shown to be sufficient nor to be necessary",
    "anywhere": "a few random rows are enough",
    "diffuse": "no small set is sufficient and necessary",
    "elsewhere": "the trait remains without any of the original rollouts",
}


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        state: one of STATES.
        parts: the set, sorted; empty where there is none.
        rows: how many rows it holds.
        confirmed: the answers of its verification: in, out, drop, random_in, random_out, random_drop.
        alone: those of its sources each of which was enough by itself.
        trainings: all that were used, original and alternative among them.
        tests: different sets and random controls that were trained.
        note: what the state rests on, and what ended the search.
        sources: the result before parts of sources were found; None where none were.
    """

    state: str
    parts: tuple[Part, ...]
    rows: int
    confirmed: Mapping[str, Answer]
    alone: tuple[str, ...]
    trainings: int
    tests: int
    note: str
    sources: Result | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "meaning": STATES[self.state],
            "parts": [part.to_json() for part in self.parts],
            "rows": self.rows,
            "confirmed": {name: answer.to_json() for name, answer in self.confirmed.items()},
            "alone": list(self.alone),
            "trainings": self.trainings,
            "tests": self.tests,
            "note": self.note,
            "sources": None if self.sources is None else self.sources.to_json(),
        }


class Search:
    """A search over sources (name -> rows). What comes next depends on the answers alone: any process can go on with it."""

    def __init__(self, sources: Mapping[str, int], settings: Settings) -> None:
        if not sources or min(sources.values()) < 1:
            raise SftdiffError("a search needs sources with at least one row each")
        self.sources, self.settings = dict(sources), settings

    def step(self, answers: Sequence[Answer]) -> list[Ask] | Result:
        """Return the tests that can be trained side by side now, or the result.

        `answers` are all so far, in the order in which they were told; some of a batch may be told before the others.
        """
        for answer in answers:
            if unknown := {part.source for part in answer.test.parts} - set(self.sources):
                raise SftdiffError(f"an answer of the search is about {sorted(unknown)[0]}, which is not among its sources")
        try:
            return self._run(answers)
        except NeedsError as needs:
            return needs.asks

    def _run(self, answers: Sequence[Answer]) -> Result:
        result = self._result("unresolved", Found(note=f"{BUDGET} before anything was found"), answers)
        verified = list[int]()
        for failed in range(ATTEMPTS):
            found, before = Found(), frozenset(result.parts)
            try:
                Explorer(Known(self.sources, self.settings, answers, verified, failed), found).sources()
            except SpentError:
                found.note = BUDGET
            if failed and not found.state and (found.parts == before or (found.note == BUDGET and not found.parts > before)):
                return result
            if found.state or not found.parts:
                return self._result(found.state or "unresolved", found, answers)
            result = self._verified(found, answers)
            verified.append(verification(result.parts, answers))
            if result.state == "found" and found.note != BUDGET:
                return self._inside(result, found, Known(self.sources, self.settings, answers, verified, failed))
            calls = {name: result.confirmed[name].call for name in CLAIMS if name in result.confirmed}
            against = any(call not in (CLAIMS[name], "unresolved") for name, call in calls.items())
            if found.note == BUDGET or not against:
                return result
        return result

    def _result(
        self, state: str, found: Found, answers: Sequence[Answer], confirmed: Mapping[str, Answer] | None = None
    ) -> Result:
        parts, alone = tuple(sorted(found.parts)), tuple(sorted(part.source for part in found.alone))
        rows, tests = sum(size_of(part, self.sources) for part in parts), len({answer.test for answer in answers})
        return Result(state, parts, rows, confirmed or {}, alone, trainings(answers), tests, found.note)

    def _verified(self, found: Found, answers: Sequence[Answer]) -> Result:
        """Train a set in, out and dropped, and as many random rows, on seeds that the exploration did not see."""
        parts, rows = tuple(sorted(found.parts)), sum(size_of(part, self.sources) for part in found.parts)
        tests = {treatment: Test(treatment, parts) for treatment in TREATMENTS}
        tests |= {f"random_{treatment}": Test(treatment, random_rows=rows) for treatment in TREATMENTS}
        number, known = verification(parts, answers), Known(self.sources, self.settings, answers)
        purpose = f"{CONFIRM} {number}"
        told = {answer.test: answer for answer in answers if answer.purpose == purpose}  # the last look at each
        wanted = [test for test in tests.values() if test not in told]
        if not wanted:
            unresolved = [tests[name] for name in CLAIMS if told[tests[name]].call == "unresolved"]
            wanted = [test for test in unresolved if len(told[test].seeds) < self.settings.looks[-1]]
        notes = [found.note]
        if wanted:
            share = self.settings.alpha / 2 ** (number + 1) / len(self.settings.looks)
            alphas = {tests[name]: share for name in CLAIMS}  # the others are looked at once
            asks = [Ask(test, known.seeds_for(test, purpose), alphas.get(test, self.settings.alpha), purpose) for test in wanted]
            try:
                known.need(asks)
            except SpentError:
                notes = [note for note in notes if note != BUDGET] + [BUDGET]
        confirmed = {name: told[test] for name, test in tests.items() if test in told}
        state, reason = verdict({name: answer.call for name, answer in confirmed.items()})
        note = "; ".join(each for each in (reason, *notes) if each)
        return self._result(state, Found(found.parts, found.alone, note=note), answers, confirmed)

    def _inside(self, result: Result, found: Found, known: Known) -> Result:
        """Look for parts of the found sources, and verify the smallest ones that do; the sources stand where none do."""
        if self.settings.smallest is None:
            return result
        explorer, answers = Explorer(known, found), known.answers
        found.note = "inside the sources the trait remained with no half alone that was gone with the other"
        try:
            explorer.narrow(self.settings.smallest)
        except SpentError:
            found.note = BUDGET
        for parts in reversed(found.steps):
            try:
                if not explorer.cleared(parts):
                    continue
            except SpentError:
                pass  # what is kept back may reach for its verification
            inner = self._verified(Found(parts, found.alone), answers)
            if inner.state == "found":
                return Result(**{**vars(inner), "sources": result})
            found.note = f"smaller parts of the sources were not confirmed ({inner.note})"
        return self._result("found", found, answers, result.confirmed)


def verdict(calls: Mapping[str, str]) -> tuple[str, str]:
    """The state that the calls of a verification give, and the reason in words; calls that are missing are unresolved."""
    inside, outside = (calls.get(name, "unresolved") for name in CLAIMS)
    if (inside, outside) == tuple(CLAIMS.values()):
        if (calls.get("random_in"), calls.get("random_out")) == ("remains", "gone"):
            return "diffuse", "random rows of the same number are sufficient and necessary as well"
        return "found", ""
    state = "sufficient" if inside == "remains" else "necessary" if outside == "gone" else "unresolved"
    return state, f"swapped in: {inside}; swapped out: {outside}"
