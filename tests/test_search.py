"""The search for the rows behind a trait: what it finds in worlds whose truth is known, what it spends, and that it replays."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.search import Result, Search, verdict
from sftdiff.search_known import Settings
from sftdiff.search_parts import HASH, Cut, Part, complement, covers, rows_of, size_of, split
from sftdiff.search_state import Answer, Ask, Evidence, Test, trainings

PROPERTY = settings(max_examples=60)
Level = Callable[[Test], float]
NAMES = [f"s{n:02d}" for n in range(40)]
EVEN = dict.fromkeys(NAMES, 100)


def kept_of(test: Test, sources: dict[str, int]) -> frozenset[str]:
    """Whole sources that have the original rollouts in a test."""
    named = {part.source for part in test.parts}
    return frozenset(named if test.treatment == "in" else set(sources) - named)


def clauses(*sets: Iterable[str], sources: dict[str, int] = EVEN) -> Level:
    """The trait is there, wholly, where all sources of one of these sets have the original rollouts."""

    def level(test: Test) -> float:
        if test.random_rows:
            return 1.0 if test.treatment != "in" else 0.0
        return float(any(set(each) <= kept_of(test, sources) for each in sets))

    return level


def answered(ask: Ask, value: float, width: float = 0.05) -> Answer:
    low, high = value - width, value + width
    partial = "partial" if low > 1 / 3 and high < 2 / 3 else "unresolved"
    call = "remains" if low > 2 / 3 else "gone" if high < 1 / 3 else partial
    return Answer(ask.test, ask.seeds, value, low, high, call, ask.purpose)


def told(level: Level, sources: dict[str, int] = EVEN, budget: int = 10_000, **chosen: Any) -> tuple[Result, list[Answer]]:
    """Run a search to its end with answers that are sure."""
    search, answers = Search(sources, Settings(budget, **chosen)), list[Answer]()
    while not isinstance(found := search.step(answers), Result):
        assert found and trainings([*answers, *found]) <= budget
        answers += [answered(ask, level(ask.test)) for ask in found]
    return found, answers


def names(result: Result) -> set[str]:
    return {part.source for part in result.parts}


# What is found


@pytest.mark.parametrize("culprits", [["s07"], ["s07", "s08"], ["s00", "s13", "s39"], ["s01", "s02", "s03", "s04"]])
def test_each_of_several_sources_that_are_enough_by_themselves_is_found(culprits: list[str]) -> None:
    result, _ = told(clauses(*([name] for name in culprits)))
    assert (result.state, names(result), result.rows) == ("found", set(culprits), 100 * len(culprits))
    assert result.alone == tuple(culprits)
    assert {name: answer.call for name, answer in result.confirmed.items()} == {
        **{"in": "remains", "out": "gone", "drop": "gone"},
        **{"random_in": "gone", "random_out": "remains", "random_drop": "remains"},
    }


@pytest.mark.parametrize("culprits", [["s07", "s21"], ["s00", "s13", "s39"], ["s01", "s02", "s03", "s04"]])
def test_sources_that_are_enough_only_together_are_found(culprits: list[str]) -> None:
    result, _ = told(clauses(culprits))
    assert (result.state, names(result), result.alone) == ("found", set(culprits), ())


def test_of_two_that_are_enough_only_together_beside_one_that_is_by_itself_one_is_named() -> None:
    result, _ = told(clauses(["s05"], ["s10", "s30"]))
    assert result.state == "found"
    assert names(result) in ({"s05", "s10"}, {"s05", "s30"})
    assert result.alone == ("s05",)


def test_two_pairs_either_of_which_is_enough() -> None:
    """Without one of each the trait is gone; to be enough as well, one of the pairs has to be whole."""
    result, _ = told(clauses(["s05", "s20"], ["s10", "s30"]))
    assert result.state == "found"
    assert len(result.parts) == 3
    assert any(pair <= names(result) for pair in ({"s05", "s20"}, {"s10", "s30"}))


@given(st.data())
@PROPERTY
def test_whatever_is_found_is_sufficient_and_necessary_and_no_source_of_it_can_be_left_out(data: st.DataObject) -> None:
    sources = {f"s{n}": data.draw(st.integers(1, 9)) for n in range(data.draw(st.integers(2, 14)))}
    each = st.sets(st.sampled_from(sorted(sources)), min_size=1, max_size=3)
    sets = data.draw(st.lists(each, min_size=1, max_size=3))

    def works(some: set[str]) -> bool:
        outside = set(sources) - some
        return any(c <= some for c in sets) and not any(c <= outside for c in sets)

    result, _ = told(clauses(*sets, sources=sources), sources)
    assert result.state == "found" or "of 4 blocks of sources have to be" in result.note
    if result.state == "found":
        found = names(result)
        assert works(found)
        assert not any(works(found - {name}) for name in found)


def test_a_trait_that_every_source_has_a_little_of_is_diffuse() -> None:
    share: Level = lambda test: test.random_rows / 4000 if test.random_rows else len(kept_of(test, EVEN)) / 40  # noqa: E731
    result, answers = told(share)
    assert (result.state, result.parts) == ("diffuse", ())
    assert result.note == "more than 3 of 7 blocks of sources have to be swapped out until the trait is gone"
    assert result.tests < 40
    assert not any(answer.purpose.startswith("confirm") for answer in answers)


def test_a_trait_that_any_rows_carry_is_told_from_one_of_many_sources() -> None:
    def anywhere(test: Test) -> float:
        return 1.0 if test.random_rows or kept_of(test, EVEN) else 0.0

    result, answers = told(anywhere)
    assert (result.state, result.parts) == ("anywhere", ())
    assert Test("in", random_rows=100) in {answer.test for answer in answers}
    many, _ = told(clauses(*([name] for name in NAMES[::3])))  # in most blocks, but not in random rows
    assert (many.state, names(many)) == ("found", set(NAMES[::3]))


def test_a_trait_that_stays_without_any_rollout_ends_the_search_at_once() -> None:
    result, answers = told(lambda test: 1.0)
    assert (result.state, result.parts, result.trainings) == ("elsewhere", (), 2 + 2 * 2)
    assert [answer.test for answer in answers] == [Test("out", tuple(map(Part, NAMES)))]


def test_rows_as_good_as_random_ones_are_called_diffuse() -> None:
    def level(test: Test) -> float:
        return float(test.treatment == "in") if test.random_rows else clauses(["s07"])(test)

    result, _ = told(level)
    assert (result.state, names(result)) == ("diffuse", {"s07"})
    assert result.note == "random rows of the same number are sufficient and necessary as well"


def test_a_single_source_is_found_without_exploring() -> None:
    result, answers = told(clauses(["only"], sources={"only": 5}), {"only": 5})
    assert (result.state, names(result)) == ("found", {"only"})
    assert sum(answer.purpose == "explore" for answer in answers) == 1


# What is spent, and on which seeds


def test_the_trainings_are_counted_and_few() -> None:
    result, answers = told(clauses(["s07"], ["s21"]))
    explored = {answer.test for answer in answers if answer.purpose == "explore"}
    references = 2 * (2 + 3)  # original and alternative, with the seeds of the exploration and of the verification
    assert result.trainings == 2 * len(explored) + 3 * 6 + references
    assert result.trainings < 3 * 40 * 3 / 5
    assert result.tests == len({answer.test for answer in answers})


def test_trainings_counts_a_seed_of_a_test_once() -> None:
    first, other = Test("in", (Part("a"),)), Test("in", (Part("b"),))
    asked = [Ask(first, (0, 1), 0.1), Ask(first, (0, 1, 2), 0.1), Ask(first, (5,), 0.1, "confirm 0"), Ask(other, (0,), 0.1)]
    assert trainings(asked) == 4 + 1 + 2 * 4
    assert trainings([]) == 0


def test_no_set_is_trained_under_two_names() -> None:
    _, answers = told(clauses(["s01", "s02", "s03"]))
    kept = [kept_of(a.test, EVEN) for a in answers if a.purpose == "explore" and not a.test.random_rows]
    assert len(kept) == len(set(kept))
    assert all(len(a.test.parts) <= 20 or len(a.test.parts) == 40 for a in answers if a.purpose == "explore")


def test_a_verification_has_seeds_and_error_rates_of_its_own() -> None:
    search, answers = Search(EVEN, Settings(10_000, looks=(3, 5), explore_looks=(2, 4), alpha=0.08)), list[Answer]()
    asks = list[Ask]()
    while not isinstance(found := search.step(answers), Result):
        asks += found
        answers += [answered(ask, clauses(["s07"])(ask.test), 0.4 if ask.purpose != "explore" else 0.05) for ask in found]
    explored = {seed for ask in asks if ask.purpose == "explore" for seed in ask.seeds}
    assert explored == {0, 1}
    first = [ask for ask in asks if ask.purpose == "confirm 0" and len(ask.seeds) == 3]
    assert {ask.seeds for ask in first} == {(4, 5, 6)}
    assert {(ask.test.treatment, bool(ask.test.random_rows)): ask.alpha for ask in first} == {
        **{("in", False): 0.08 / 2 / 2, ("out", False): 0.08 / 2 / 2, ("drop", False): 0.08},
        **{(treatment, True): 0.08 for treatment in ("in", "out", "drop")},
    }
    again = [ask for ask in asks if ask.purpose == "confirm 0" and len(ask.seeds) == 5]
    assert [(ask.test.treatment, ask.seeds, ask.alpha) for ask in again] == [
        ("in", (4, 5, 6, 7, 8), 0.02),
        ("out", (4, 5, 6, 7, 8), 0.02),
    ]
    assert found.state == "unresolved"
    assert found.note == "swapped in: unresolved; swapped out: unresolved"


def test_a_test_that_is_unresolved_gets_more_seeds_until_its_estimate_counts() -> None:
    def told_so(width: float) -> list[tuple[int, ...]]:
        search, answers, seeds = Search(EVEN, Settings(10_000)), list[Answer](), list[tuple[int, ...]]()
        while len(answers) < 10 and not isinstance(found := search.step(answers), Result):
            seeds += [ask.seeds for ask in found]
            answers += [answered(ask, 0.2, width) for ask in found[:1]]
            if found[0].test.treatment == "in":
                break
        return seeds

    assert told_so(0.1)[:1] == [(0, 1)]
    assert len(told_so(0.1)[1:]) == 7  # blocks
    assert told_so(0.2)[:3] == [(0, 1), (0, 1, 2), (0, 1, 2, 3, 4)]


@given(st.integers(26, 130), st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True), st.booleans())
@PROPERTY
def test_the_budget_is_kept_and_what_is_found_in_it_is_verified(budget: int, culprits: list[str], alone: bool) -> None:
    level = clauses(*([name] for name in culprits)) if alone else clauses(culprits)
    result, _ = told(level, budget=budget)  # asserts that each batch is within the budget
    assert result.trainings <= budget
    assert names(result) <= set(culprits)
    assert bool(result.parts) == bool(result.confirmed)
    if names(result) != set(culprits):
        assert result.state in ("unresolved", "sufficient", "necessary")
        assert "the budget ended" in result.note


def test_a_search_whose_budget_ended_goes_on_with_a_larger_one() -> None:
    """The second set that is verified has half of the first one's error rate, whatever came between."""
    level = clauses(["s07"], ["s21"], ["s30"])
    first, answers = told(level, budget=64)
    assert first.state != "found" and names(first) < {"s07", "s21", "s30"}
    search, asks = Search(EVEN, Settings(200)), list[Ask]()
    while not isinstance(found := search.step(answers), Result):
        asks += found
        answers += [answered(ask, level(ask.test)) for ask in found]
    assert (found.state, names(found)) == ("found", {"s07", "s21", "s30"})
    assert not {ask.test for ask in asks} & {answer.test for answer in answers[: -len(asks)] if answer.test.parts}
    assert {ask.alpha for ask in asks if ask.purpose == "confirm 1" and ask.test.treatment == "in" and ask.test.parts} == {
        0.05 / 4 / 3
    }


def test_a_set_that_is_not_confirmed_sends_the_search_on() -> None:
    """Two false answers hide one of two culprits: that its block is not enough, and that nothing is left without the other."""
    truth = clauses(["s07"], ["s30"])

    def level(ask: Ask) -> float:
        named = {part.source for part in ask.test.parts}
        hidden = ("s30" in named and len(named) > 2) if ask.test.treatment == "in" else named == {"s07"}
        return 0.0 if ask.purpose == "explore" and hidden and len(ask.seeds) == 2 else truth(ask.test)

    search, answers = Search(EVEN, Settings(10_000)), list[Answer]()
    while not isinstance(found := search.step(answers), Result):
        answers += [answered(ask, level(ask)) for ask in found]
    first = {a.test.treatment: a.call for a in answers if a.purpose == "confirm 0" and a.test.parts == (Part("s07"),)}
    assert first == {"in": "remains", "out": "remains", "drop": "remains"}
    assert (found.state, names(found)) == ("found", {"s07", "s30"})
    assert {answer.purpose for answer in answers} == {"explore", "confirm 0", "confirm 1"}
    assert {len(a.seeds) for a in answers if a.purpose == "confirm 1"} == {3}


# Replaying


def noisy(ask: Ask, seed: int, level: Level) -> Answer:
    """An answer that depends on what is asked alone, wide and often wrong."""
    rng = np.random.default_rng([seed, len(ask.seeds), *(ord(letter) for letter in f"{ask.test}{ask.purpose}"[-60:])])
    return answered(ask, level(ask.test) + 0.3 * rng.standard_normal(), 0.4 / math.sqrt(len(ask.seeds)))


@given(st.integers(0, 1000), st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True), st.data())
@settings(max_examples=10)
def test_a_search_goes_on_from_its_answers_as_json_wherever_it_stopped(
    seed: int, culprits: list[str], data: st.DataObject
) -> None:
    chosen, level = Settings(150, orders=("judge",), smallest=10), clauses(culprits)
    search, answers, batches = Search(EVEN, chosen), list[Answer](), list[tuple[int, list[Ask]]]()
    while not isinstance(found := search.step(answers), Result):
        batches.append((len(answers), found))
        some = data.draw(st.integers(1, len(found)))  # not all of a batch are told at once
        answers += [noisy(ask, seed, level) for ask in found[:some]]
    texts = [json.dumps(answer.to_json(), allow_nan=False) for answer in answers]
    again = [Answer.from_json(json.loads(text)) for text in texts]
    assert again == answers
    for count, batch in batches:
        assert Search(EVEN, chosen).step(again[:count]) == batch
    assert Search(EVEN, chosen).step(again) == found
    assert len(batches) == len({count for count, _ in batches})  # each step asks for something
    assert trainings(answers) == found.trainings <= 150


def test_answers_without_limits_are_kept_as_json() -> None:
    answer = Answer(Test("in", (Part("a"),)), (0,), math.nan, -math.inf, math.inf, "unresolved")
    back = Answer.from_json(json.loads(json.dumps(answer.to_json(), allow_nan=False)))
    assert math.isnan(back.value)
    assert (back.low, back.high) == (-math.inf, math.inf)
    assert [back.above(0.5, last) for last in (False, True)] == [None, False]


def test_what_the_first_answer_says_of_a_question_stands() -> None:
    a, b = Part("a"), Part("b")
    sources = {"a": 1, "b": 1, "c": 1}

    def about(treatment: str, parts: Sequence[Part], value: float, seeds: int = 2) -> Answer:
        return answered(Ask(Test(treatment, tuple(parts)), tuple(range(seeds)), 0.1), value)

    evidence = Evidence(
        [about("in", [a], 0.9), about("in", [a, b], 0.1), about("in", [b], 0.5), about("in", [b], 0.6, 5)], sources, 5
    )
    assert evidence.above(frozenset([a, b]), 0.5) is True  # from its part
    assert evidence.above(frozenset([b]), 0.5) is False  # from what it is part of
    assert evidence.above(frozenset([b]), 0.58) is False
    assert evidence.above(frozenset([Part("c")]), 0.5) is None
    alone = Evidence([about("in", [b], 0.5), about("in", [b], 0.51, 5)], sources, 5)
    assert alone.above(frozenset([b]), 0.5) is True  # the estimate, at the last look
    assert Evidence([about("in", [b], 0.5)], sources, 5).above(frozenset([b]), 0.5) is None
    assert Evidence([about("out", [a], 0.1)], sources, 5).above(frozenset([b]), 0.5) is False
    assert Evidence([about("drop", [a], 0.1)], sources, 5).above(frozenset([b]), 0.5) is None


# Inside sources


def test_the_rows_that_a_locator_puts_first_take_their_sources_place() -> None:
    """Two sources of 400 rows; the first 50 rows by the judge carry the trait, in one of them those of the hash order."""
    sources = dict.fromkeys(NAMES, 400)
    carriers = {"s07": ("judge", 50), "s21": (HASH, 100)}

    def held(part: Part) -> bool:
        if part.source not in carriers:
            return False
        order, count = carriers[part.source]
        return all(cut.order == order and cut.start == 0 and cut.stop >= count for cut in part.cuts)

    def level(test: Test) -> float:
        if test.random_rows:
            return float(test.treatment != "in")
        kept = test.parts if test.treatment == "in" else complement(test.parts, sources)
        return float(any(held(part) for part in kept))

    result, answers = told(level, sources, orders=("keyword", "judge"), smallest=20)
    assert result.state == "found"
    assert result.parts == (Part("s07", (Cut("judge", 0, 50),)), Part("s21", (Cut(HASH, 0, 100),)))
    assert result.rows == 150
    assert result.sources is not None and names(result.sources) == {"s07", "s21"}
    assert result.sources.rows == 800
    assert {answer.purpose for answer in answers} == {"explore", "confirm 0", "confirm 1"}
    assert result.to_json()["sources"]["parts"] == [{"source": name, "cuts": []} for name in ("s07", "s21")]
    plain, _ = told(level, sources)
    assert plain.parts == result.sources.parts and plain.sources is None


def test_rows_that_are_enough_only_with_another_source_are_looked_at_beside_it() -> None:
    sources = dict.fromkeys(NAMES, 400)

    def level(test: Test) -> float:
        if test.random_rows:
            return float(test.treatment != "in")
        kept = test.parts if test.treatment == "in" else complement(test.parts, sources)
        first = any(part == Part("s21") for part in kept)
        return float(first and any(p.source == "s07" and all(c == Cut("judge", 0, c.stop) for c in p.cuts) for p in kept))

    result, _ = told(level, sources, orders=("judge",), smallest=100)
    assert result.state == "found"
    assert result.parts == (Part("s07", (Cut("judge", 0, 100),)), Part("s21"))


def test_sources_stand_where_no_part_of_them_does() -> None:
    """Each half is enough."""
    result, _ = told(lambda test: clauses(["s07"])(test) if not test.random_rows else float(test.treatment != "in"), smallest=10)
    assert (result.state, names(result), result.sources) == ("found", {"s07"}, None)
    assert result.note == "inside the sources the trait remained with no half alone that was gone with the other"


# Parts


@st.composite
def cut_parts(draw: st.DrawFn, rows: int = 40) -> Part:
    """A part as a search makes it: halves of halves, by one order after another."""
    part = Part("a")
    for order in draw(st.lists(st.sampled_from(["judge", "keyword", HASH]), max_size=4)):
        count = draw(st.integers(0, size_of(part, {"a": rows})))
        part = split(part, order, count, {"a": rows})[draw(st.integers(0, 1))]
    return part


IDS = np.random.default_rng(0).integers(0, 2**63, 40).astype(np.uint64)
SCORES = {
    "judge": np.random.default_rng(1).integers(0, 4, 40).astype(float).tolist(),
    "keyword": [math.nan if n % 3 else float(n % 5) for n in range(40)],
}


@given(cut_parts(), st.sampled_from(["judge", "keyword", HASH]), st.data())
def test_the_two_sides_of_a_split_hold_each_row_of_a_part_once(part: Part, order: str, data: st.DataObject) -> None:
    rows = rows_of(part, IDS, SCORES)
    assert len(rows) == size_of(part, {"a": 40})
    count = data.draw(st.integers(0, len(rows)))
    first, rest = split(part, order, count, {"a": 40})
    assert (size_of(first, {"a": 40}), size_of(rest, {"a": 40})) == (count, len(rows) - count)
    assert sorted([*rows_of(first, IDS, SCORES), *rows_of(rest, IDS, SCORES)]) == rows.tolist()
    assert first.within(part) and rest.within(part) and covers(frozenset([part, Part("b")]), frozenset([first, rest]))
    assert Part.from_json(json.loads(json.dumps(first.to_json()))) == first


@given(cut_parts())
def test_a_part_and_what_is_outside_of_it_hold_each_row_once(part: Part) -> None:
    outside = complement([part], {"a": 40, "b": 7})
    assert Part("b") in outside
    rows = [row for other in outside if other.source == "a" for row in rows_of(other, IDS, SCORES)]
    assert sorted([*rows, *rows_of(part, IDS, SCORES)]) == list(range(40))


@given(cut_parts(), cut_parts())
def test_a_part_within_another_has_only_rows_of_it(part: Part, other: Part) -> None:
    if part.within(other):
        assert set(rows_of(part, IDS, SCORES)) <= set(rows_of(other, IDS, SCORES))


def test_rows_are_ranked_by_falling_score_and_prompt_id_with_missing_scores_last() -> None:
    ids = np.array([5, 3, 9, 1], np.uint64)
    scores = {"judge": [2.0, 2.0, math.nan, 7.0]}
    ranked = [rows_of(Part("a", (Cut("judge", n, n + 1),)), ids, scores).tolist() for n in range(4)]
    assert ranked == [[3], [1], [0], [2]]
    assert not Part("a").within(Part("b"))
    with pytest.raises(SftdiffError, match="a has no scores of bm25, by which the search ranked its rows"):
        rows_of(Part("a", (Cut("bm25", 0, 1),)), ids, scores)


# The verdict, and what is refused


@pytest.mark.parametrize(
    ("calls", "state"),
    [
        ({"in": "remains", "out": "gone"}, "found"),
        ({"in": "remains", "out": "gone", "random_in": "remains", "random_out": "remains"}, "found"),  # any slice is enough
        ({"in": "remains", "out": "gone", "random_in": "remains", "random_out": "gone"}, "diffuse"),
        ({"in": "remains", "out": "partial"}, "sufficient"),
        ({"in": "remains"}, "sufficient"),
        ({"in": "partial", "out": "gone"}, "necessary"),
        ({"in": "gone", "out": "remains"}, "unresolved"),
        ({}, "unresolved"),
    ],
)
def test_the_state_follows_from_the_calls(calls: dict[str, str], state: str) -> None:
    assert verdict(calls)[0] == state


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"looks": (3, 2)}, "growing numbers of seeds, not 3, 2"),
        ({"explore_looks": ()}, "growing numbers of seeds"),
        ({"explore_looks": (0, 1)}, "growing numbers of seeds, not 0, 1"),
        ({"alpha": 0.0}, "error rates between 0 and 1"),
        ({"gone": 0.8}, "gone at most remains"),
        ({"smallest": 0}, "must have a row at least, not 0"),
        ({"budget": 23}, "more than the 24 trainings of one verification"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SftdiffError, match=message):
        replace(Settings(100), **changed)


def test_sources_and_answers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SftdiffError, match="sources with at least one row each"):
        Search({"a": 0}, Settings(100))
    answer = answered(Ask(Test("in", (Part("other"),)), (0,), 0.1), 1.0)
    with pytest.raises(SftdiffError, match="an answer of the search is about other, which is not among its sources"):
        Search({"a": 1}, Settings(100)).step([answer])
