"""The decision table, the verdict on each hypothesis, and the arm that would tell most next."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.files import DATA
from sftdiff.hypotheses import CALLS, as_data, load_decisions, next_arms, verdict

TABLE = load_decisions("embedded://decisions.yaml")
ARMS = sorted({entry.arm for entry in TABLE.entries})
# The arm without which a hypothesis is open: the one that decides for it.
DECIDING = {"H1": "mild_removed", "H2": "other_init", "H3": "style_removed", "H4a": "pinned", "H4b": "prompt_swap",
            "H5": "pinned", "H6": "pre_stage"}  # fmt: skip


def states(calls: dict[str, str]) -> dict[str, str]:
    return {label: found.state for label, found in verdict(TABLE, calls).items()}


@pytest.mark.parametrize("truth", TABLE.hypotheses)
def test_what_a_hypothesis_predicts_supports_it_alone(truth: str) -> None:
    calls = dict(TABLE.hypotheses[truth].predicts)
    found = states(calls)
    assert [label for label, state in found.items() if state == "supported"] == [truth]
    assert verdict(TABLE, calls)[truth].unfit == ()
    without = {arm: call for arm, call in calls.items() if arm != DECIDING[truth]}
    assert states(without)[truth] == "open"
    for arm in calls:
        less = {other: call for other, call in calls.items() if other != arm}
        assert all(label == truth or state != "supported" for label, state in states(less).items())


@pytest.mark.parametrize("truth", TABLE.hypotheses)
def test_what_a_hypothesis_predicts_contradicts_most_others(truth: str) -> None:
    found = states(dict(TABLE.hypotheses[truth].predicts))
    assert sum(state == "contradicted" for state in found.values()) >= 5


def test_nothing_resolved_says_nothing() -> None:
    for calls in ({}, dict.fromkeys(ARMS, "unresolved"), dict.fromkeys(ARMS, "partial")):
        assert set(states(calls).values()) == {"open"}


@given(st.dictionaries(st.sampled_from(ARMS), st.sampled_from(CALLS)))
def test_no_calls_support_everything(calls: dict[str, str]) -> None:
    supported = [label for label, state in states(calls).items() if state == "supported"]
    assert len(supported) <= 3
    assert not {"H5", "H6"} <= set(supported) and not {"H1", "H3"} <= set(supported) and not {"H4a", "H5"} <= set(supported)


def test_decisive_entries_that_disagree_leave_a_hypothesis_open() -> None:
    calls = {"base_only": "gone", "mild_removed": "gone", "style_removed": "gone"}
    found = verdict(TABLE, calls)
    assert found["H1"].state == found["H3"].state == "open"
    assert any(e.decisive for e in found["H1"].speaks_for) and any(e.decisive for e in found["H1"].speaks_against)
    assert found["H2"].state == "contradicted"


def test_an_entry_waits_for_what_is_given() -> None:
    assert states({"pinned": "remains"})["H5"] == "open"
    assert states({"pinned": "remains", "base_only": "remains"})["H5"] == "open"
    assert states({"pinned": "remains", "base_only": "remains", "pre_stage": "remains"})["H5"] == "supported"


def test_expected_information_is_that_of_hand_worked_cases(tmp_path: Path) -> None:
    """Of two hypotheses that predict unlike calls one bit at most: 1 + the entropy that each call leaves."""
    content = {"hypotheses": {}, "entries": [{"arm": "c", "call": "gone", "against": ["A"], "reason": "r", "decisive": True}]}
    for label, predicts in {"A": {"x": "gone", "y": "gone"}, "B": {"x": "remains", "y": "gone"}}.items():
        content["hypotheses"][label] = {"name": label, "meaning": label, "predicts": predicts}  # type: ignore[index]
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(content))
    table = load_decisions(str(path))
    [best] = next_arms(table, {}, {"x": 3.0, "y": 1.0, "z": 1.0})  # y and z do not tell them apart
    p, q = 0.85, 0.05
    mean = [(p + q) / 2, (p + q) / 2, q, q]
    expected = -sum(v * math.log2(v) for v in mean) + p * math.log2(p) + 3 * q * math.log2(q)
    assert (best.arm, best.cost) == ("x", 3.0) and best.bits == pytest.approx(expected) and best.bits < 1
    assert next_arms(table, {"x": "gone"}, {"x": 3.0}) == []  # its call is made
    [alone] = next_arms(table, {"c": "gone"}, {"x": 3.0})  # A is contradicted; B, or neither
    mean = [(p + 0.25) / 2, *[(q + 0.25) / 2] * 3]
    assert alone.bits == pytest.approx(-sum(v * math.log2(v) for v in mean) - (2 - p * math.log2(p) - 3 * q * math.log2(q)) / 2)


def test_the_cheaper_of_two_arms_that_tell_the_same_comes_first() -> None:
    order = [s.arm for s in next_arms(TABLE, {"base_only": "gone"}, {"mild_removed": 9.0, "style_removed": 3.0, "clean": 1.0})]
    assert order == ["style_removed", "mild_removed"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"call": "gone", "reason": "r", "for": ["H1"]}, "entry 1: arm is missing"),
        ({"arm": "a", "call": "away", "reason": "r", "for": ["H1"]}, "'away' is no call"),
        ({"arm": "a", "call": "unresolved", "reason": "r", "for": ["H1"]}, "'unresolved' is no call"),
        ({"arm": "a", "call": "gone", "reason": " ", "for": ["H1"]}, "needs a reason"),
        ({"arm": "a", "call": "gone", "reason": "r", "for": ["H9"]}, "must be a list of hypotheses"),
        ({"arm": "a", "call": "gone", "reason": "r", "for": "H1"}, "must be a list of hypotheses"),
        ({"arm": "a", "call": "gone", "reason": "r", "for": ["H1"], "against": ["H1"]}, "for and against H1"),
        ({"arm": "a", "call": "gone", "reason": "r"}, "for no hypothesis"),
        ({"arm": "a", "call": "gone", "reason": "r", "for": ["H1"], "sure": True}, "unknown: sure"),
        ({"arm": "a", "call": "gone", "reason": "r", "for": ["H1"], "given": {"a": "remains"}}, "can never hold"),
        ("text", "must be a mapping"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump({"hypotheses": {"H1": {"name": "n", "meaning": "m", "predicts": {}}}, "entries": [entry]}))
    with pytest.raises(SftdiffError) as raised:
        load_decisions(str(path))
    assert message in str(raised.value) and str(path) in str(raised.value)


def test_the_shipped_table_speaks_of_arms_that_there_are() -> None:
    arms = set(yaml.safe_load((DATA.parent.parent / "conf/experiment/diff.yaml").read_text())["diff"]["arms"])
    named = {arm for entry in TABLE.entries for arm, _ in ((entry.arm, entry.call), *entry.given)}
    assert named | {arm for h in TABLE.hypotheses.values() for arm in h.predicts} <= arms
    assert all(entry.reason.endswith(".") for entry in TABLE.entries)


def test_a_verdict_is_plain_data() -> None:
    data = as_data(TABLE, verdict(TABLE, {"base_only": "gone", "mild_removed": "gone"}))
    assert data["H1"]["state"] == "supported" and data["H1"]["for"][0]["arm"] == "mild_removed"
    assert all(set(own) == {"name", "meaning", "state", "for", "against", "unfit"} for own in data.values())


def test_at_most_one_hypothesis_is_supported_when_every_arm_is_resolved() -> None:
    arms = ["base_only", "prompt_swap", "mild_removed", "style_removed", "other_init", "pre_stage", "pinned"]
    for made in product(("remains", "gone"), repeat=len(arms)):
        found = states(dict(zip(arms, made, strict=True)))
        assert sum(state == "supported" for state in found.values()) <= 1
