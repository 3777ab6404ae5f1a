"""Properties of the row algebra, over made-up prompts, subsets, filters and gaps in the rollouts."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.rows import SUBSETS, TREATMENTS, Decision, Prompt, decide, subset_ids, treat

ACTIONS = {"kept", "swapped", "dropped", "error"}
TEACHERS = {"teacher": "one", "other": "two"}


@dataclass(frozen=True)
class Case:
    """One prompt set with everything that decides what becomes of its rows."""

    prompts: tuple[Prompt, ...]
    subset: frozenset[str]
    treatment: str
    flagged: frozenset[str]
    filter_treatment: str
    rollouts: frozenset[tuple[str, str]]  # (slot, prompt_id)

    @property
    def ids(self) -> list[str]:
        return [p.prompt_id for p in self.prompts]

    def decisions(self, flagged: frozenset[str] | None = None) -> dict[str, Decision]:
        assigned = treat(self.ids, self.subset, self.treatment)
        flags = self.flagged if flagged is None else flagged
        made = decide(assigned, flags, "words", self.filter_treatment, TEACHERS, lambda slot, key: (slot, key) in self.rollouts)
        assert len(made) == len(self.ids)
        return {d.prompt_id: d for d in made}


@st.composite
def prompt_sets(draw: st.DrawFn) -> tuple[Prompt, ...]:
    ids = draw(st.lists(st.integers(0, 10**6).map(lambda n: f"{n:x}"), unique=True, min_size=1, max_size=12))
    return tuple(Prompt(i, draw(st.sampled_from(["mail", "chat", "code"])), (("user", i),)) for i in ids)


@st.composite
def subsets(draw: st.DrawFn, prompts: tuple[Prompt, ...]) -> frozenset[str]:
    sources = draw(st.sets(st.sampled_from(sorted({p.source for p in prompts}))))
    share, seed = draw(st.floats(0, 1)), draw(st.integers(0, 5))
    return frozenset(subset_ids(prompts, draw(st.sampled_from(SUBSETS)), sources, share, seed))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prompts = draw(prompt_sets())
    ids = [p.prompt_id for p in prompts]
    present = draw(st.sets(st.sampled_from([(slot, i) for slot in TEACHERS for i in ids])))
    return Case(
        prompts,
        draw(subsets(prompts)),
        draw(st.sampled_from(TREATMENTS)),
        frozenset(draw(st.sets(st.sampled_from(ids)))),
        draw(st.sampled_from(["drop", "swap"])),
        frozenset(present),
    )


def teacher_of(ids: list[str], subset: frozenset[str], treatment: str, teachers: dict[str, str]) -> dict[str, str | None]:
    """Whose rollout each prompt gets when there is no filter and no rollout is missing."""
    made = decide(treat(ids, subset, treatment), set(), "none", "drop", teachers, lambda slot, key: True)
    return {d.prompt_id: d.teacher for d in made}


@given(cases())
@settings(deadline=None, max_examples=50)
def test_every_prompt_gets_exactly_one_action_and_a_reason(case: Case) -> None:
    decisions = case.decisions()
    assert list(decisions) == case.ids
    for decision in decisions.values():
        assert decision.action in ACTIONS
        assert decision.reason
        assert (decision.teacher is None) == (decision.action in ("dropped", "error"))
        assert decision.action != "kept" or decision.teacher == "one"
        assert decision.action != "swapped" or decision.teacher == "two"


@given(cases())
@settings(deadline=None, max_examples=50)
def test_swap_and_drop_touch_the_same_prompts(case: Case) -> None:
    swapped = {i for i, slot in treat(case.ids, case.subset, "swap").items() if slot != "teacher"}
    dropped = {i for i, slot in treat(case.ids, case.subset, "drop").items() if slot != "teacher"}
    assert swapped == dropped == case.subset


@given(cases())
@settings(deadline=None, max_examples=50)
def test_swap_is_swap_rest_with_the_complement_or_with_the_teachers_exchanged(case: Case) -> None:
    swap = teacher_of(case.ids, case.subset, "swap", TEACHERS)
    rest = frozenset(case.ids) - case.subset
    assert swap == teacher_of(case.ids, rest, "swap_rest", TEACHERS)
    assert swap == teacher_of(case.ids, case.subset, "swap_rest", {"teacher": "two", "other": "one"})
    assert swap == teacher_of(case.ids, rest, "swap", {"teacher": "two", "other": "one"})


@given(cases())
@settings(deadline=None, max_examples=50)
def test_only_is_the_complement_of_drop(case: Case) -> None:
    left = {i for i, slot in treat(case.ids, case.subset, "drop").items() if slot == "teacher"}
    only = {i for i, slot in treat(case.ids, case.subset, "only").items() if slot == "teacher"}
    assert only | left == set(case.ids)
    assert not only & left
    assert only == case.subset


@given(cases())
@settings(deadline=None, max_examples=50)
def test_keep_ignores_the_subset(case: Case) -> None:
    assert set(treat(case.ids, case.subset, "keep").values()) == {"teacher"}


@given(prompt_sets(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 100))
@settings(deadline=None, max_examples=50)
def test_random_shares_nest_and_have_their_size(prompts: tuple[Prompt, ...], one: float, two: float, seed: int) -> None:
    small, large = sorted((one, two))
    inner, outer = (subset_ids(prompts, "random_share", [], share, seed) for share in (small, large))
    assert inner <= outer
    assert len(outer) == round(large * len(prompts))


@given(cases(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_decisions_do_not_depend_on_the_order_of_the_rows(case: Case, shuffler: object) -> None:
    prompts = list(case.prompts)
    shuffler.shuffle(prompts)  # type: ignore[attr-defined]
    again = Case(tuple(prompts), case.subset, case.treatment, case.flagged, case.filter_treatment, case.rollouts)
    assert again.decisions() == case.decisions()


@given(prompt_sets(), st.sampled_from(SUBSETS), st.floats(0, 1), st.integers(0, 5), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_subsets_do_not_depend_on_the_order_of_the_rows(
    prompts: tuple[Prompt, ...], name: str, share: float, seed: int, shuffler: object
) -> None:
    shuffled = list(prompts)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    sources = [prompts[0].source]
    assert subset_ids(prompts, name, sources, share, seed) == subset_ids(shuffled, name, sources, share, seed)


@given(cases())
@settings(deadline=None, max_examples=50)
def test_a_filter_never_touches_what_the_subset_took_from_the_teacher(case: Case) -> None:
    assigned = treat(case.ids, case.subset, case.treatment)
    with_filter, without = case.decisions(), case.decisions(flagged=frozenset())
    for key, slot in assigned.items():
        if slot != "teacher" or key not in case.flagged:
            assert with_filter[key] == without[key]


@given(cases())
@settings(deadline=None, max_examples=50)
def test_a_flagged_row_of_the_teacher_is_treated_and_says_by_which_filter(case: Case) -> None:
    assigned = treat(case.ids, case.subset, case.treatment)
    for key, decision in case.decisions().items():
        if assigned[key] == "teacher" and key in case.flagged:
            assert decision.action in {"drop": {"dropped"}, "swap": {"swapped", "error"}}[case.filter_treatment]
            assert decision.reason == "filter words" or decision.action == "error"


@given(cases())
@settings(deadline=None, max_examples=50)
def test_a_missing_rollout_is_an_error_that_names_the_teacher(case: Case) -> None:
    for key, decision in case.decisions().items():
        if decision.action == "error":
            slot = next(slot for slot, name in TEACHERS.items() if name in decision.reason.split())
            assert (slot, key) not in case.rollouts
        if decision.teacher is not None:
            slot = "teacher" if decision.teacher == "one" else "other"
            assert (slot, key) in case.rollouts


@given(cases())
@settings(deadline=None, max_examples=50)
def test_with_all_rollouts_nothing_is_an_error(case: Case) -> None:
    complete = frozenset((slot, i) for slot in TEACHERS for i in case.ids)
    whole = Case(case.prompts, case.subset, case.treatment, case.flagged, case.filter_treatment, complete)
    assert all(d.action != "error" for d in whole.decisions().values())


def test_names_that_do_not_exist_are_errors_with_the_choices() -> None:
    prompts = [Prompt("1", "mail", (("user", "a"),)), Prompt("2", "chat", (("user", "b"),))]
    with pytest.raises(SftdiffError, match=r"prompt_subset\.name: 'half' is not one of all, none, by_source, random_share"):
        subset_ids(prompts, "half", [], 0.5, 0)
    with pytest.raises(SftdiffError, match=r"no prompt has the source maths, poems; there are chat, mail"):
        subset_ids(prompts, "by_source", ["poems", "mail", "maths"], 1, 0)
    with pytest.raises(SftdiffError, match=r"prompt_subset\.treatment: 'ablate' is not one of keep, swap"):
        treat(["1"], set(), "ablate")


def test_seeds_choose_different_subsets() -> None:
    prompts = [Prompt(f"{n}", "mail", (("user", f"{n}"),)) for n in range(100)]
    chosen = {frozenset(subset_ids(prompts, "random_share", [], 0.5, seed)) for seed in range(4)}
    assert len(chosen) == 4
