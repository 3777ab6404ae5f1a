"""The plan of looks: shares of the error rate, who needs seeds, what is saved; and that looking again keeps the error rate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftdiff.looks import Looks, Round, Savings, next_seeds, savings
from sftdiff.transfer import Bounds, call_transfer, transfer

LOOKS = Looks()


def test_each_look_spends_an_equal_share() -> None:
    assert [LOOKS.alpha_at(look) for look in range(3)] == [pytest.approx(0.05 / 3)] * 3
    assert [LOOKS.spent(look) for look in range(3)] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])
    assert Looks((4,), 0.1).alpha_at(0) == 0.1


@given(st.sets(st.integers(1, 50), min_size=1, max_size=6), st.floats(0.001, 0.5))
def test_the_looks_together_spend_alpha(seeds: set[int], alpha: float) -> None:
    looks = Looks(tuple(sorted(seeds)), alpha)
    assert sum(looks.alpha_at(look) for look in range(len(seeds))) == pytest.approx(alpha) == looks.spent(len(seeds) - 1)


@pytest.mark.parametrize("look", [-1, 3])
def test_a_look_that_is_not_planned_has_no_error_rate(look: int) -> None:
    with pytest.raises(IndexError, match=f"look {look} is not planned: there are 3"):
        LOOKS.alpha_at(look)


@pytest.mark.parametrize("seeds", [(), (0, 3), (5, 3), (3, 3)])
def test_seeds_that_do_not_rise_are_refused(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="seeds of looks must be whole numbers from 1 on that rise"):
        Looks(seeds)


@pytest.mark.parametrize("alpha", [0.0, 1.0, float("nan")])
def test_an_error_rate_outside_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        Looks((3,), alpha)


def test_unresolved_arms_and_both_ends_get_the_seeds_of_the_next_look() -> None:
    calls = {"base_only": "gone", "prompt_swap": "unresolved", "pinned": "partial", "clean": "unresolved"}
    found = next_seeds(calls, LOOKS, 0)
    assert found == Round(5, ("original", "alternative", "prompt_swap", "clean"), (), 8)
    assert next_seeds(calls, LOOKS, 1) == Round(8, ("original", "alternative", "prompt_swap", "clean"), (), 12)


def test_before_the_first_look_every_arm_gets_its_first_seeds() -> None:
    calls = {"original": "unresolved", "alternative": "unresolved", "base_only": "unresolved"}
    assert next_seeds(calls, LOOKS, -1) == Round(3, ("original", "alternative", "base_only"), (), 9)


def test_nothing_is_added_when_all_is_resolved_or_the_looks_are_used_up() -> None:
    assert next_seeds({"base_only": "gone", "clean": "partial"}, LOOKS, 0) is None
    assert next_seeds({"base_only": "unresolved"}, LOOKS, 2) is None
    assert next_seeds({}, LOOKS, -1) is None
    assert next_seeds({"original": "unresolved", "alternative": "unresolved"}, LOOKS, 0) is None


def test_a_budget_is_kept_in_the_order_of_the_arms() -> None:
    calls = dict.fromkeys(("base_only", "prompt_swap", "clean"), "unresolved")
    assert next_seeds(calls, LOOKS, 0, budget=9) == Round(
        5, ("original", "alternative", "base_only", "prompt_swap"), ("clean",), 8
    )
    assert next_seeds(calls, LOOKS, 0, budget=5) is None  # both ends and one arm need 6
    assert next_seeds(calls, LOOKS, 0, budget=7, missing={"original": 0, "alternative": 1, "base_only": 7}) == Round(
        5, ("original", "alternative", "prompt_swap", "clean"), ("base_only",), 5
    )


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["gone", "remains", "partial", "unresolved"])),
    st.integers(-1, 2),
    st.integers(0, 60),
)
def test_a_round_never_costs_more_than_the_budget_and_leaves_no_arm_out_in_silence(
    calls: dict[str, str], look: int, budget: int
) -> None:
    found = next_seeds(calls, LOOKS, look, budget)
    if found is not None:
        assert found.trainings <= budget and found.arms[:2] == ("original", "alternative")
        assert sorted([*found.arms[2:], *found.left_out]) == sorted(arm for arm, call in calls.items() if call == "unresolved")


def test_savings_are_against_the_last_looks_seeds_for_every_arm() -> None:
    found = savings({"original": 5, "alternative": 5, "base_only": 3, "prompt_swap": 5}, LOOKS)
    assert found == Savings(18, 32) and found.saved == 14 and found.share == pytest.approx(14 / 32)
    assert savings({"original": 8, "alternative": 8}, LOOKS).saved == 0


# --- looking again keeps the error rate ------------------------------------------------------------------------------


def called_wrongly(truth: float, wrong: str, gap: float, diffs: int, rng: np.random.Generator) -> float:
    """The share of diffs in which one of three looks at an arm with this transfer makes the wrong call. Shares, 20 scenarios."""
    found = 0
    for _ in range(diffs):
        scenario, seed = rng.uniform(-0.1, 0.1, (1, 20)), rng.uniform(-0.05, 0.05, (3, 8, 1))
        levels = np.array([0.2 + truth * gap, 0.2, 0.2 + gap])[:, None, None] + scenario + seed
        arm, alternative, original = (rng.random((3, 8, 20)) < levels).astype(float)
        for look, seeds in enumerate(LOOKS.seeds):
            sides = (side[:seeds] for side in (arm, alternative, original))
            call = call_transfer(transfer(*sides, "share", (0, 1), LOOKS.alpha_at(look)), Bounds())
            if call != "unresolved":
                found += wrong in (call, "any")
                break
    return found / diffs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth", "wrong", "gap"),
    [(1 / 3, "gone", 0.6), (2 / 3, "remains", 0.6), (0.0, "any", 0.0)],
)
def test_three_looks_together_are_wrong_in_at_most_alpha(truth: float, wrong: str, gap: float) -> None:
    """At the bounds, where a wrong call is likeliest, and without a gap. 0.015: a standard error at 200 diffs."""
    assert called_wrongly(truth, wrong, gap, 200, np.random.default_rng(5)) <= LOOKS.alpha + 0.015


def test_looks_at_the_whole_error_rate_would_be_wrong_too_often() -> None:
    """The family that the split protects: limits at 5 % each miss at one of many looks far more often than 5 %."""
    rng, missed = np.random.default_rng(2), {"split": 0, "whole": 0}
    for _ in range(400):
        drawn = rng.standard_normal((6, 40))
        for name, quantile in (("whole", 1.96), ("split", 2.638)):  # two-sided normal at 5 % and at 5 % / 6
            means = [drawn[: look + 1].mean() * np.sqrt(40 * (look + 1)) for look in range(6)]
            missed[name] += any(abs(mean) > quantile for mean in means)
    assert missed["split"] / 400 <= 0.05 < 0.09 <= missed["whole"] / 400
