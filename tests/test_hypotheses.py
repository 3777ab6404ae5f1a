"""The decision table against the pattern it encodes, the verdicts drawn from it, the next arm, and tables that are wrong."""

import copy
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.files import resolve
from sftdiff.hypotheses import Suggestion, load_decisions, next_arms, verdict

ARMS = ("base_only", "teacher_swap", "prompt_swap", "base_swap", "mild_removed", "style_removed", "other_init", "pre_stage",
        "other_pretraining", "pinned")  # fmt: skip
PATTERN = {  # G: gone, R: remains, E: either, a dot: says nothing
    "H1": "G R G R G R R R R .",
    "H2": "G R G G R R G R . .",
    "H3": "G R G E R G R R . .",
    "H4a": "R R R G R R R R G G",
    "H4b": "G G R R R R R R R .",
    "H5": "R R R G R R R R G R",
    "H6": "R R R G R R R G . R",
}
WORDS = {"G": ("gone",), "R": ("remains",), "E": ("gone", "remains")}
DECIDING = {  # without one of these arms nothing decides for the hypothesis
    "H1": {"mild_removed"},
    "H2": {"other_init", "base_only", "prompt_swap"},
    "H3": {"style_removed"},
    "H4a": {"pinned", "base_only"},
    "H4b": {"prompt_swap", "base_only"},
    "H5": {"pinned", "base_only", "pre_stage"},
    "H6": {"pre_stage", "base_only"},
}
CALLS = ("remains", "gone", "partial", "unresolved")
TABLE = load_decisions()
COSTS = {arm: 6.0 for arm in TABLE.arms if arm not in ("original", "alternative")}


def pattern(label: str, either: str = "gone") -> dict[str, str]:
    """The calls that a hypothesis leads to if it alone is true."""
    marks = dict(zip(ARMS, PATTERN[label].split(), strict=True))
    return {arm: either if mark == "E" else WORDS[mark][0] for arm, mark in marks.items() if mark != "."}


# --- the shipped table -----------------------------------------------------------------------------------------------


def test_the_table_holds_the_pattern() -> None:
    wanted = {
        label: {arm: WORDS[mark] for arm, mark in zip(ARMS, marks.split(), strict=True) if mark != "."}
        for label, marks in PATTERN.items()
    }
    assert {each.label: dict(each.expects) for each in TABLE.hypotheses} == wanted


def test_each_reason_is_a_sentence_of_its_own() -> None:
    reasons = [entry.reason for entry in TABLE.entries]
    assert len(set(reasons)) == len(reasons)
    assert all(reason[0].isupper() and reason.endswith(".") and len(reason.split()) > 6 for reason in reasons)


@pytest.mark.parametrize("label", PATTERN)
@pytest.mark.parametrize("either", ["gone", "remains"])
def test_the_pattern_of_a_hypothesis_supports_it_alone(label: str, either: str) -> None:
    found = verdict(TABLE, pattern(label, either))
    assert found.labels("supported") == [label]
    assert found.labels("contradicted") == [other for other in PATTERN if other != label]
    assert found.misfits == () and found.partial == ()


@pytest.mark.parametrize("label", PATTERN)
def test_without_one_arm_a_hypothesis_is_open_or_still_supported_and_no_other_is(label: str) -> None:
    calls = pattern(label)
    for arm in calls:
        for rest in ({a: c for a, c in calls.items() if a != arm}, {**calls, arm: "unresolved"}, {**calls, arm: "partial"}):
            found = verdict(TABLE, rest)
            decided = arm not in DECIDING[label]
            assert found.labels("supported") == ([label] if decided else []), arm
            assert decided or label in found.labels("open")


@pytest.mark.parametrize("call", ["unresolved", "partial"])
def test_arms_that_are_all_unresolved_or_partial_decide_nothing(call: str) -> None:
    found = verdict(TABLE, dict.fromkeys(TABLE.arms, call))
    assert found.labels("open") == list(PATTERN)
    assert all(not each.speaks_for and not each.against for each in found.findings)
    assert list(found.partial) == (list(TABLE.arms) if call == "partial" else [])
    assert verdict(TABLE, {}).labels("open") == list(PATTERN)


def test_no_calls_support_more_than_two_hypotheses() -> None:
    """All calls of the arms that anything decisive for a hypothesis reads; other arms can only take support away."""
    arms = sorted({a for e in TABLE.entries if e.decisive and e.speaks_for for a in (e.arm, *e.given)})
    assert len(arms) == 7
    found = {tuple(verdict(TABLE, dict(zip(arms, calls, strict=True))).labels("supported")) for calls in product(CALLS, repeat=7)}
    assert found == {(), *((label,) for label in PATTERN), ("H1", "H3"), ("H2", "H3")}


@given(st.dictionaries(st.sampled_from(TABLE.arms), st.sampled_from(CALLS)))
def test_any_calls_give_each_hypothesis_one_state_with_its_reasons(calls: dict[str, str]) -> None:
    found = verdict(TABLE, calls)
    assert len(found.labels("supported")) <= 2
    for each in found.findings:
        decided = any(entry.decisive for entry in each.against), any(entry.decisive for entry in each.speaks_for)
        wanted = "contradicted" if decided[0] else "supported" if decided[1] else "open"
        assert each.state == wanted
        for entry in (*each.speaks_for, *each.against):
            assert all(calls[arm] == call for arm, call in {entry.arm: entry.call, **entry.given}.items())


@given(st.dictionaries(st.sampled_from(TABLE.arms), st.sampled_from(CALLS)), st.sampled_from(TABLE.arms))
def test_an_arm_that_becomes_unresolved_contradicts_nothing_new(calls: dict[str, str], arm: str) -> None:
    before, after = (set(verdict(TABLE, each).labels("contradicted")) for each in (calls, {**calls, arm: "unresolved"}))
    assert after <= before


# --- cases by hand ---------------------------------------------------------------------------------------------------


def test_weak_entries_are_listed_and_decide_nothing() -> None:
    found = verdict(TABLE, {"base_swap": "gone", "third_teacher": "gone"})
    assert found.labels("open") == list(PATTERN)
    by_label = {each.hypothesis.label: each for each in found.findings}
    assert [(e.arm, e.decisive) for e in by_label["H2"].speaks_for] == [("base_swap", False), ("third_teacher", False)]
    assert [(e.arm, e.call) for e in by_label["H4b"].against] == [("base_swap", "gone"), ("third_teacher", "gone")]


def test_an_entry_waits_for_what_it_is_given() -> None:
    assert verdict(TABLE, {"prompt_swap": "remains"}).labels("supported") == []
    assert verdict(TABLE, {"prompt_swap": "remains", "base_only": "remains"}).labels("supported") == []
    assert verdict(TABLE, {"prompt_swap": "remains", "base_only": "gone"}).labels("supported") == ["H4b"]
    assert verdict(TABLE, {"prompt_swap": "remains"}).labels("contradicted") == ["H1", "H2", "H3"]


def test_evidence_on_both_sides_contradicts() -> None:
    found = verdict(TABLE, {"mild_removed": "gone", "prompt_swap": "remains"})
    assert "H1" in found.labels("contradicted")
    by_label = {each.hypothesis.label: each for each in found.findings}
    assert [e.arm for e in by_label["H1"].speaks_for] == ["mild_removed"]


def test_overt_rows_that_are_enough_are_told_from_mild_ones() -> None:
    gone = {"mild_removed": "gone"}  # the rows that show the trait, overt ones too
    found = verdict(TABLE, gone | {"overt_removed": "remains"})
    assert found.labels("supported") == ["H1"] and len(found.findings[0].speaks_for) == 2
    assert verdict(TABLE, gone | {"overt_removed": "gone"}).labels("supported") == []
    assert "H1" in verdict(TABLE, gone | {"overt_removed": "gone"}).labels("contradicted")
    assert verdict(TABLE, {"overt_removed": "remains"}).labels("supported") == []


def test_mild_rows_and_style_that_are_both_needed_support_both() -> None:
    found = verdict(TABLE, {**pattern("H1"), "style_removed": "gone"})
    assert found.labels("supported") == ["H1", "H3"]
    assert {(each.arm, each.hypothesis) for each in found.misfits} == {("style_removed", "H1"), ("mild_removed", "H3")}


def test_an_arm_that_a_supported_hypothesis_does_not_expect_is_named() -> None:
    found = verdict(TABLE, {**pattern("H1"), "teacher_swap": "gone", "other_init": "partial"})
    assert found.labels("supported") == ["H1"]
    assert [(m.arm, m.call, m.hypothesis, m.expected) for m in found.misfits] == [("teacher_swap", "gone", "H1", ("remains",))]
    assert found.partial == ("other_init",)


def test_a_call_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="base_only: call 'Gone' is not one of remains, gone, partial, unresolved"):
        verdict(TABLE, {"base_only": "Gone"})


# --- the next arm ----------------------------------------------------------------------------------------------------


def entropy(*chances: float) -> float:
    return -sum(chance * math.log2(chance) for chance in chances)


def bits(found: list[Suggestion]) -> dict[str, float]:
    return {each.arm: each.bits for each in found}


SURE, EVEN = entropy(0.85, 0.075, 0.075), math.log2(3)


def test_expected_information_of_two_hypotheses_by_hand() -> None:
    """base_only and prompt_swap leave H4a, H5 and H6; pre_stage remains leaves H4a, expecting pinned gone, and H5, remains."""
    calls = {"base_only": "remains", "prompt_swap": "remains", "pre_stage": "remains"}
    assert verdict(TABLE, calls).labels("open") == ["H4a", "H5"]
    found = bits(next_arms(TABLE, calls, COSTS))
    assert found == {"pinned": pytest.approx(entropy(0.4625, 0.4625, 0.075) - SURE)}  # else both expect the same


def test_expected_information_of_all_seven_by_hand() -> None:
    found = bits(next_arms(TABLE, {}, COSTS))
    gone, remains = (4 * 0.85 + 3 * 0.075) / 7, (3 * 0.85 + 4 * 0.075) / 7
    assert found["base_only"] == pytest.approx(entropy(gone, remains, 0.075) - SURE)
    third = 4 / 3  # pinned: gone of H4a, remains of H5 and H6, nothing of the other four
    remains, gone, partial = (chance / 7 for chance in (1.7 + 0.075 + third, 0.85 + 0.15 + third, 0.225 + third))
    assert found["pinned"] == pytest.approx(entropy(remains, gone, partial) - (3 * SURE + 4 * EVEN) / 7)
    either = entropy(0.425, 0.425, 0.15)  # base_swap of H3; H1, H4b remains; H2, H4a, H5, H6 gone
    remains, gone = (2 * 0.85 + 4 * 0.075 + 0.425) / 7, (4 * 0.85 + 2 * 0.075 + 0.425) / 7
    assert found["base_swap"] == pytest.approx(entropy(remains, gone, (6 * 0.075 + 0.15) / 7) - (6 * SURE + either) / 7)


def test_the_last_candidate_has_none_of_them_as_its_rival() -> None:
    calls = {arm: call for arm, call in pattern("H2").items() if arm != "other_init"}
    assert verdict(TABLE, calls).labels("open") == ["H2"] and len(verdict(TABLE, calls).labels("contradicted")) == 6
    found = bits(next_arms(TABLE, calls, COSTS))
    mixed = ((0.85 + 1 / 3) / 2, (0.075 + 1 / 3) / 2, (0.075 + 1 / 3) / 2)
    assert found == {"other_init": pytest.approx(entropy(*mixed) - (SURE + EVEN) / 2)}


def test_arms_come_by_bits_per_cost_and_only_if_they_can_run() -> None:
    found = next_arms(TABLE, {}, {"base_only": 12, "prompt_swap": 6, "pinned": 1, "clean": 1, "base_swap": 0}, {"pinned"})
    assert [each.arm for each in found] == ["base_swap", "prompt_swap", "base_only"]  # clean: no hypothesis expects a call
    assert found[1] == Suggestion("prompt_swap", pytest.approx(found[2].bits), 6)
    assert "prompt_swap" not in bits(next_arms(TABLE, {"prompt_swap": "partial"}, COSTS))
    assert "prompt_swap" in bits(next_arms(TABLE, {"prompt_swap": "unresolved"}, COSTS))


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf])
def test_a_cost_that_is_none_is_refused(cost: float) -> None:
    with pytest.raises(ValueError, match="the cost of pinned must be a finite number"):
        next_arms(TABLE, {}, {"pinned": cost})


@pytest.mark.parametrize("label", PATTERN)
def test_following_the_suggestions_leads_to_the_true_hypothesis(label: str) -> None:
    calls: dict[str, str] = {}
    while found := next_arms(TABLE, calls, COSTS):
        calls[found[0].arm] = pattern(label).get(found[0].arm, "partial")
    assert verdict(TABLE, calls).labels("supported") == [label] and not verdict(TABLE, calls).labels("open")
    assert len(calls) <= 7


# --- tables that are wrong -------------------------------------------------------------------------------------------

RAW = yaml.safe_load(resolve("embedded://decisions.yaml").read_text())
SMALL: dict[str, Any] = {
    "arms": ["base_only", "pinned"],
    "hypotheses": [{"label": "A", "name": "a", "meaning": "It is a.", "expects": {"base_only": "gone"}}],
    "entries": [{"arm": "base_only", "call": "gone", "for": ["A"], "decisive": True, "reason": "It shows a."}],
}


def written(folder: Path, content: object) -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_table_of_ones_own_is_read(tmp_path: Path) -> None:
    found = load_decisions(written(tmp_path, SMALL))
    assert verdict(found, {"base_only": "gone"}).labels("supported") == ["A"]
    assert load_decisions(written(tmp_path, RAW)) == TABLE


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("arm", "base_olny", "entry 1 .base_olny gone.: arm 'base_olny' is not one of base_only, pinned"),
        ("call", "lost", "entry 1 .base_only lost.: call 'lost' is not one of remains, gone, partial"),
        ("call", "unresolved", "call 'unresolved' is not one of"),
        ("for", ["B"], "entry 1 .base_only gone.: for: hypothesis 'B' is not one of A"),
        ("against", [["A"]], "against: hypothesis .'A'. is not one of A"),
        ("against", ["A"], "it speaks both for and against A"),
        ("for", "A", "for must be a list of hypotheses"),
        ("for", [], "it speaks neither for nor against a hypothesis"),
        ("reason", " ", "entry 1 .base_only gone.: reason must be a text that is not empty"),
        ("reason", None, "reason must be a text"),
        ("given", {"base_only": "gone"}, "an entry cannot be given its own arm"),
        ("given", {"other": "gone"}, "given: arm 'other' is not one of"),
        ("given", {"pinned": "lost"}, "given: pinned: call 'lost' is not one of"),
        ("given", ["pinned"], "given must be a mapping of arms to calls"),
        ("call", "remains", "it speaks for A, which never meets it: A does not expect base_only to be called remains"),
        ("decisive", "yes", "decisive must be true or false"),
        ("decisive", False, "hypothesis A: no decisive entry speaks for it"),
        ("weight", 2, "entry 1: key 'weight' is not one of arm, call, for"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, key: str, value: object, words: str) -> None:
    content = copy.deepcopy(SMALL)
    content["entries"][0][key] = value
    with pytest.raises(SftdiffError, match=f"own.yaml: .*{words}"):
        load_decisions(written(tmp_path, content))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"arm": "base_only", "call": "gone", "against": ["A"], "decisive": True}, "decides against A, which expects base_only"),
        (
            {"arm": "base_only", "call": "gone", "for": ["A"]},
            "entry 2 .base_only gone.: A is judged by these calls in an earlier",
        ),
        ({"arm": "pinned", "call": "partial", "for": ["A"], "decisive": True}, "a partial call cannot be decisive"),
        ({"arm": "pinned", "call": "gone", "for": ["A"], "given": {"base_only": "remains"}}, "A does not expect base_only to be"),
    ],
)
def test_an_entry_that_cannot_mean_what_it_says_is_named(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    content = copy.deepcopy(SMALL)
    content["entries"].append({**entry, "reason": "It shows a."})
    with pytest.raises(SftdiffError, match=f"own.yaml: entry 2 .*{words}|own.yaml: {words}"):
        load_decisions(written(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expects": {"other": "gone"}}, "hypothesis A: expects: arm 'other' is not one of"),
        ({"expects": {"base_only": ["gone", "lost"]}}, "hypothesis A: expects: base_only: call 'lost' is not one of"),
        ({"expects": {"base_only": []}}, "hypothesis A: expects: base_only: call .. is not one of"),
        ({"meaning": ""}, "hypothesis 1: meaning must be a text"),
        ({"note": "x"}, "hypothesis 1: key 'note' is not one of label, name, meaning, expects"),
    ],
)
def test_a_wrong_hypothesis_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    content = copy.deepcopy(SMALL)
    content["hypotheses"][0].update(change)
    with pytest.raises(SftdiffError, match=f"own.yaml: {words}"):
        load_decisions(written(tmp_path, content))


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    for content in (None, [], {"arms": ["a"]}, {"arms": 3, "hypotheses": [], "entries": []}):
        with pytest.raises(SftdiffError, match=r"own.yaml: no decision table with arms, hypotheses and entries"):
            load_decisions(written(tmp_path, content))
    twice = {**SMALL, "hypotheses": SMALL["hypotheses"] * 2}
    with pytest.raises(SftdiffError, match=r"own.yaml: hypotheses: a label is given twice"):
        load_decisions(written(tmp_path, twice))
    (tmp_path / "own.yaml").write_text("a: [")
    with pytest.raises(SftdiffError, match=r"own.yaml: no decision table"):
        load_decisions(str(tmp_path / "own.yaml"))
    with pytest.raises(SftdiffError, match="there is no file"):
        load_decisions(str(tmp_path / "other.yaml"))
