"""Properties of the row algebra, over made-up prompts, subsets, filters and gaps in the rollouts."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.rows import (
    DROPPED,
    ERROR,
    KEPT,
    NONE,
    OTHER,
    SWAPPED,
    TEACHER,
    TREATMENTS,
    Assignment,
    Codes,
    Mask,
    actions_of,
    first_by,
    hash_order,
    length_strata,
    matched_random,
    selected,
    treat,
)
from sftdiff.sorting import Ids

FILTERS = ("drop", "swap")
Floats = np.ndarray[Any, np.dtype[np.float64]]
PROPERTY = settings(max_examples=60)


@dataclass(frozen=True)
class Case:
    """One prompt set with everything that decides what becomes of its rows. All arrays have one entry a prompt."""

    ids: Ids
    subset: Mask
    treatment: str
    chain: tuple[tuple[Mask, str], ...]  # flagged rows and treatment of each filter
    usable: tuple[Mask, Mask]  # of the teacher and the other

    def assignment(self, filters: bool = True) -> Assignment:
        found = Assignment.of_subset(treat(self.subset, self.treatment))
        for number, (flagged, treatment) in enumerate(self.chain if filters else ()):
            found = found.filtered(flagged, f"f{number}", treatment)
        return found

    def reasons(self) -> list[str]:
        found = self.assignment()
        return [found.texts[k] for k in found.reasons]


def masks(count: int) -> st.SearchStrategy[Mask]:
    return st.lists(st.booleans(), min_size=count, max_size=count).map(lambda values: np.array(values, bool))


@st.composite
def id_arrays(draw: st.DrawFn, least: int = 1, most: int = 12) -> Ids:
    found = draw(st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=least, max_size=most))
    return np.array(sorted(found), np.uint64)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ids = draw(id_arrays())
    chain = draw(st.lists(st.tuples(masks(len(ids)), st.sampled_from(FILTERS)), max_size=3))
    usable = draw(masks(len(ids))), draw(masks(len(ids)))
    return Case(ids, draw(masks(len(ids))), draw(st.sampled_from(TREATMENTS)), tuple(chain), usable)


def touched(subset: Mask, treatment: str) -> Mask:
    return np.asarray(treat(subset, treatment) != TEACHER)


def exchange(slots: Codes) -> Codes:
    """Return the slots with the two teachers' names exchanged."""
    return np.array([OTHER, TEACHER, NONE], np.int8)[slots]


@given(cases())
@PROPERTY
def test_every_prompt_ends_in_exactly_one_action_with_a_reason(case: Case) -> None:
    slots = case.assignment().slots
    actions = actions_of(slots, case.usable)
    assert len(actions) == len(case.ids) == len(case.reasons())
    for action, slot, own, other in zip(actions, slots, *case.usable, strict=True):
        expected = {TEACHER: KEPT if own else ERROR, OTHER: SWAPPED if other else ERROR, NONE: DROPPED}[slot]
        assert action == expected
    assert sum(int((actions == action).sum()) for action in (KEPT, SWAPPED, DROPPED, ERROR)) == len(case.ids)
    assert set(case.reasons()) <= {"teacher", "prompt_subset", *(f"filter f{k}" for k in range(len(case.chain)))}


@given(cases())
@PROPERTY
def test_swap_and_drop_touch_the_same_prompts(case: Case) -> None:
    assert (touched(case.subset, "swap") == touched(case.subset, "drop")).all()
    assert (touched(case.subset, "swap") == case.subset).all()


@given(cases())
@PROPERTY
def test_swap_and_then_swap_back_is_where_it_began(case: Case) -> None:
    """The second swap is of the same prompts, from the mixture in which the two teachers stand the other way round."""
    back = np.where(case.subset, exchange(treat(case.subset, "swap")), treat(case.subset, "swap"))
    assert (back == treat(case.subset, "keep")).all()
    assert (exchange(treat(case.subset, "swap")) == treat(case.subset, "swap_rest")).all()


@given(cases())
@PROPERTY
def test_swap_is_swap_rest_with_the_complement(case: Case) -> None:
    assert (treat(case.subset, "swap") == treat(~case.subset, "swap_rest")).all()
    assert (treat(case.subset, "drop") == treat(~case.subset, "only")).all()


@given(cases())
@PROPERTY
def test_only_is_the_complement_of_drop(case: Case) -> None:
    left, only = (treat(case.subset, treatment) == TEACHER for treatment in ("drop", "only"))
    assert (only ^ left).all()
    assert (only == case.subset).all()


@given(cases())
@PROPERTY
def test_keep_ignores_the_subset(case: Case) -> None:
    assert (treat(case.subset, "keep") == TEACHER).all()


@given(cases())
@PROPERTY
def test_a_filter_touches_the_teachers_rows_only_and_says_which_filter_it_was(case: Case) -> None:
    before = case.assignment(filters=False)
    for number, (flagged, treatment) in enumerate(case.chain):
        after = before.filtered(flagged, f"f{number}", treatment)
        mine = flagged & (before.slots == TEACHER)
        assert (after.slots[~mine] == before.slots[~mine]).all()
        assert (after.reasons[~mine] == before.reasons[~mine]).all()
        assert (after.slots[mine] == (OTHER if treatment == "swap" else NONE)).all()
        assert {after.texts[k] for k in after.reasons[mine]} <= {f"filter f{number}"}
        before = after


@given(cases())
@PROPERTY
def test_missing_rollouts_are_errors_where_they_are_needed(case: Case) -> None:
    slots = case.assignment().slots
    own, both = actions_of(slots, case.usable), actions_of(slots, case.usable, "both")
    complete = case.usable[0] & case.usable[1]
    assert ((own == ERROR) <= (both == ERROR)).all()
    assert ((both == ERROR) == (~complete & (slots != NONE))).all()
    assert (both[complete] == own[complete]).all()
    everything = (np.ones(len(case.ids), bool),) * 2
    assert not (actions_of(slots, everything) == ERROR).any()


@given(cases())
@PROPERTY
def test_with_needed_both_all_treatments_have_the_same_errors_among_what_they_use(case: Case) -> None:
    """So that two cells differ in their rollouts, and never in their prompts."""
    used = [actions_of(treat(case.subset, t), case.usable, "both") <= SWAPPED for t in ("keep", "swap", "swap_rest")]
    assert (used[0] == used[1]).all() and (used[0] == used[2]).all()


def test_a_treatment_that_does_not_exist_is_an_error_with_the_choices() -> None:
    with pytest.raises(SftdiffError, match=r"prompt_subset\.treatment: 'ablate' is not one of keep, swap, swap_rest, drop, only"):
        treat(np.ones(1, bool), "ablate")


# Seeded choices


def finalizer(x: int) -> int:
    """SplitMix64's finalizer, in whole numbers without a limit."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_the_hash_order_is_stable_and_depends_on_the_seed() -> None:
    ids = np.array([0, 1, 0x84B9D9C9D0163214], np.uint64)
    seed = int(hashlib.sha256(b"('subset', 0)").hexdigest()[:16], 16)
    assert hash_order(ids, "subset", 0).tolist() == [finalizer(int(key) ^ seed) for key in ids]
    assert not (hash_order(ids, "subset", 0) == hash_order(ids, "subset", 1)).any()
    assert not (hash_order(ids, "subset", 0) == hash_order(ids, "sample", 0)).any()


@given(st.integers(0, 9), st.integers(0, 200))
@PROPERTY
def test_the_hash_order_spreads_ids_that_are_neighbours(seed: int, start: int) -> None:
    ids = np.arange(start, start + 400, dtype=np.uint64)
    order = hash_order(ids, seed)
    assert len(np.unique(order)) == 400
    assert 120 < (order < np.uint64(2**63)).sum() < 280


@given(id_arrays(), st.data())
@PROPERTY
def test_a_seeded_choice_of_a_row_depends_on_that_row_alone(ids: Ids, data: st.DataObject) -> None:
    some = np.array(data.draw(st.lists(st.sampled_from(list(ids)), unique=True, min_size=1)), np.uint64)
    whole = dict(zip(ids.tolist(), hash_order(ids, 3).tolist(), strict=True))
    assert [whole[int(key)] for key in some] == hash_order(some, 3).tolist()


@given(id_arrays(), st.data())
@PROPERTY
def test_first_by_takes_the_first_and_breaks_ties_by_id(ids: Ids, data: st.DataObject) -> None:
    order = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids))))
    among, count = data.draw(masks(len(ids))), data.draw(st.integers(0, len(ids)))
    chosen = first_by(order, ids, count, among)
    expected = sorted((int(o), int(i)) for o, i, a in zip(order, ids, among, strict=True) if a)[:count]
    assert {int(i) for i in ids[chosen]} == {i for _, i in expected}


@given(id_arrays(most=20), st.data())
@PROPERTY
def test_a_matched_choice_has_the_targets_size_in_every_stratum(ids: Ids, data: st.DataObject) -> None:
    strata = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(ids), max_size=len(ids))))
    target, among = data.draw(masks(len(ids))), data.draw(masks(len(ids)))
    chosen = matched_random(target, ids, strata, among, (0,))
    assert not (chosen & ~among).any()
    for stratum in range(3):
        inside = strata == stratum
        assert (chosen & inside).sum() == min((target & inside).sum(), (among & inside).sum())
    assert matched_random(target, ids, None, among, (0,)).sum() == min(target.sum(), among.sum())


def test_a_matched_choice_changes_with_its_seed() -> None:
    ids, target = np.arange(100, dtype=np.uint64), np.arange(100) < 50
    found = {matched_random(target, ids, None, np.ones(100, bool), (seed,)).tobytes() for seed in range(4)}
    assert len(found) == 4


@given(st.lists(st.integers(0, 10**6), max_size=60), st.integers(2, 20))
@PROPERTY
def test_length_strata_are_ordered_and_of_similar_size(lengths: list[int], bins: int) -> None:
    strata = length_strata(np.array(lengths), bins)
    assert len(strata) == len(lengths)
    by_length = strata[np.argsort(lengths, kind="stable")]
    assert (np.diff(by_length) >= 0).all()
    assert ((strata >= 0) & (strata < bins)).all()
    if len(set(lengths)) == len(lengths) >= bins:
        counts = np.bincount(strata, minlength=bins)
        assert counts.max() - counts.min() <= 2


# Scores


score_lists = st.lists(st.floats(0, 5) | st.sampled_from([0.0, 1.0, 2.0, np.nan]), max_size=20).map(np.array)


@given(score_lists, st.data())
@PROPERTY
def test_a_number_takes_the_highest_scores_and_a_share_that_part(scores: Floats, data: st.DataObject) -> None:
    ids = np.arange(len(scores), dtype=np.uint64)
    among = data.draw(masks(len(scores)))
    scored, count = among & ~np.isnan(scores), data.draw(st.integers(1, 25))
    chosen = selected(scores, ids, None, count, among)
    assert chosen.sum() == min(count, scored.sum())
    assert not (chosen & ~scored).any()
    rest = scored & ~chosen
    assert not chosen.any() or not rest.any() or scores[chosen].min() >= scores[rest].max()
    share = data.draw(st.floats(0, 1, exclude_max=True))
    assert selected(scores, ids, None, share, among).sum() == round(share * int(scored.sum()))


@given(score_lists, st.floats(0, 5), st.floats(0, 5))
@PROPERTY
def test_a_higher_threshold_flags_a_part_of_what_a_lower_one_flags(scores: Floats, one: float, two: float) -> None:
    ids, everything = np.arange(len(scores), dtype=np.uint64), np.ones(len(scores), bool)
    low, high = (selected(scores, ids, threshold, None, everything) for threshold in sorted((one, two)))
    assert (high <= low).all()
    assert (selected(scores, ids, 0, None, everything) == ~np.isnan(scores)).all()
    assert all(score >= min(one, two) for score in scores[low])


def test_ties_of_scores_go_by_prompt_id_and_the_row_without_a_score_is_never_taken() -> None:
    ids, scores = np.array([3, 1, 2, 4, 5], np.uint64), np.array([1.0, 1.0, 1.0, 2.0, np.nan])
    everything = np.ones(5, bool)
    assert set(ids[selected(scores, ids, None, 2, everything)].tolist()) == {4, 1}
    assert set(ids[selected(scores, ids, -1e9, None, everything)].tolist()) == {1, 2, 3, 4}
    assert set(ids[selected(scores, ids, None, 9, everything)].tolist()) == {1, 2, 3, 4}


def test_a_missing_threshold_is_an_error() -> None:
    with pytest.raises(SftdiffError, match="needs a threshold, or top"):
        selected(np.ones(1), np.ones(1, np.uint64), None, None, np.ones(1, bool))
