"""Levels and differences from verdict rows: controls, states, guards, families of tests, and judges that must not be mixed."""

from typing import Any

import pytest

from sftdiff.compare import adjust, arm_notes, trait_differences, trait_level
from sftdiff.errors import SftdiffError
from sftdiff.verdicts import one_judge, rule_agreement

SETTINGS = {"baseline": "untrained", "resamples": 100}
SHARE = {"name": "t", "title": "Trait", "kind": "share", "guard": False, "max_tokens": 96, "smallest_effect": 0.1}
RATING = SHARE | {"name": "r", "title": "Rating", "kind": "rating", "smallest_effect": 0.5}
GUARD = SHARE | {"name": "g", "title": "Ability", "guard": True}
BASE = {"id": "untrained", "axes": {}, "trained_here": False}
ARM = {"id": "teacher=a", "axes": {"teacher": "a"}, "trained_here": True}
OTHER = {"id": "teacher=b", "axes": {"teacher": "b"}, "trained_here": True}


def row(scenario: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {
        "scenario": scenario, "sample": 1, "turn": 0, "kind": "direct", "control": False, "value": value, "label": f"l{value}",
        "state": "error" if value is None else "ok", "deliberation": None, "rule_value": None, "rule_label": "", "judge": "rules",
        "rubric": "rules 2", "cut": False, "empty": False, "loop": False,
    } | more  # fmt: skip


def rows(ones: int, count: int = 20, **more: Any) -> list[dict[str, Any]]:
    return [row(f"s{i:02d}", float(i < ones), **more) for i in range(count)]


def test_controls_and_what_does_not_count_are_no_part_of_a_level() -> None:
    table = [*rows(5), row("s20", None), row("s21", None, state="invalid"), row("c1", 1.0, control=True),
             row("c2", 0.0, control=True), row("c3", None, control=True)]  # fmt: skip
    level = trait_level(ARM, SHARE, {0: table}, SETTINGS)
    assert (level["value"], level["replies"], level["scenarios"]) == (0.25, 22, 22)
    assert (level["ok"], level["invalid"], level["error"], level["ok_share"]) == (20, 1, 1, 20 / 22)
    assert (level["control_value"], level["control_replies"]) == (0.5, 2)
    assert level["labels"] == {"l0.0": 0.75, "l1.0": 0.25} and level["method"] == "Wilson score interval, 20 scenarios"
    assert trait_level(ARM, SHARE, {0: rows(5)}, SETTINGS)["control_value"] is None


def test_cut_replies_spoil_a_trait_and_no_guard() -> None:
    table = rows(5, cut=True)
    trait, guard = (trait_level(ARM, settings, {0: table}, SETTINGS) for settings in (SHARE, GUARD))
    assert not trait["interpreted"] and "100% of replies were cut at 96 tokens" in trait["note"]
    assert guard["interpreted"] and guard["note"] is None and guard["cut_share"] == 1


def test_a_level_without_any_verdict_says_so() -> None:
    level = trait_level(ARM, SHARE, {0: [row("a", None), row("b", None)]}, SETTINGS)
    assert level["value"] is None and not level["interpreted"]
    assert level["note"] == "none of its replies has a verdict that counts"
    found = trait_differences([BASE, ARM], [SHARE], {"untrained": {"t": {0: rows(3)}}, ARM["id"]: {"t": {0: [row("a", None)]}}},
                              [trait_level(a, SHARE, {0: []}, SETTINGS) for a in (BASE, ARM)], SETTINGS)  # fmt: skip
    assert found[0]["value"] is None and found[0]["p"] is None


def test_turns_kinds_high_ratings_and_deliberation() -> None:
    table = [row("a", 2.0, turn=0), row("a", 6.0, turn=1), row("b", 5.0, turn=0, kind="other", deliberation=1.0),
             row("b", 9.0, turn=1, kind="other", deliberation=0.0)]  # fmt: skip
    level = trait_level(ARM, RATING, {0: table}, SETTINGS)
    assert level["by_turn"] == {"1": 3.5, "2": 7.5} and level["by_kind"] == {"direct": 4.0, "other": 7.0}
    assert level["high_share"] == 0.75 and level["deliberation"] == 0.5 and level["value"] == 5.5
    assert trait_level(ARM, SHARE, {0: rows(3)}, SETTINGS)["high_share"] is None


def test_agreement_with_the_rules_is_a_judge_models_alone() -> None:
    model = [row("a", 1.0, rule_value=1.0, judge="m"), row("b", 1.0, rule_value=0.0, judge="m"), row("c", 0.0, judge="m")]
    assert rule_agreement(model, "share") == {"replies": 2, "same": 0.5}
    assert rule_agreement([r | {"judge": "rules"} for r in model], "share") is None
    rated = [row(str(i), float(i), rule_value=2.0 * i, judge="m") for i in range(4)]
    assert rule_agreement(rated, "rating") == {"replies": 4, "correlation": pytest.approx(1.0), "mean_gap": -1.5}
    flat = [r | {"rule_value": 1.0} for r in rated]
    assert rule_agreement(flat, "rating") == {"replies": 4, "correlation": None, "mean_gap": 0.5}


def test_one_scenario_is_judged_by_its_replies() -> None:
    table = [row("only", float(i < 7), sample=i + 1) for i in range(20)]
    level = trait_level(BASE, SHARE, {0: table}, SETTINGS)
    assert level["method"] == "Wilson score interval, 20 replies"
    assert level["scope"].startswith("over replies to this one scenario")
    levels = [level, trait_level(ARM, SHARE, {0: table[:10]}, SETTINGS)]
    verdicts = {"untrained": {"t": {0: table}}, ARM["id"]: {"t": {0: table[:10]}}}
    (gap,) = trait_differences([BASE, ARM], [SHARE], verdicts, levels, SETTINGS)
    assert gap["value"] == pytest.approx(0.35) and "20 replies, not paired" in gap["method"]


def compared(*traits: dict[str, Any], **ones: dict[str, int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Levels and differences of three arms, with so many replies of 40 that show each trait."""
    arms = [BASE, ARM, OTHER]
    verdicts = {a["id"]: {t["name"]: {0: rows(n, 40)} for t, n in zip(traits, ones[k].values(), strict=True)}
                for a, k in zip(arms, ones, strict=True)}  # fmt: skip
    levels = [trait_level(a, t, verdicts[a["id"]][t["name"]], SETTINGS) for a in arms for t in traits]
    return levels, trait_differences(arms, traits, verdicts, levels, SETTINGS)


def test_p_is_adjusted_within_a_family_and_guards_are_apart() -> None:
    levels, found = compared(SHARE, GUARD, base={"t": 4, "g": 30}, arm={"t": 11, "g": 8}, other={"t": 30, "g": 31})
    family = {(r["arm"], r["trait"]): r for r in found if r["family"] == "baseline"}
    first, second = family[ARM["id"], "t"], family[OTHER["id"], "t"]
    assert first["p"] == pytest.approx(2 * 0.5**7) and first["holm"] == pytest.approx(first["p"])
    assert second["holm"] == pytest.approx(2 * second["p"]) and second["call_adjusted"] == "higher"
    assert family[ARM["id"], "g"]["holm"] is None and family[ARM["id"], "g"]["call_adjusted"] == "lower"
    (contrast,) = [r for r in found if r["family"] == "contrast" and r["trait"] == "t"]
    assert contrast["holm"] == pytest.approx(contrast["p"])  # a family of its own, with one member
    notes = arm_notes(ARM["id"], [SHARE, GUARD], levels, found)
    assert notes == [
        "Ability fell from 0.75 to 0.20: this model lost ability, and lower trait levels in this arm may come of that"
    ]
    assert arm_notes(OTHER["id"], [SHARE, GUARD], levels, found) == []


def test_a_difference_that_the_family_does_not_bear_is_unresolved() -> None:
    def one(p: float, call: str, **more: Any) -> dict[str, Any]:
        return {"p": p, "call": call, "interpreted": True, "guard": False} | more

    family = [one(0.03, "higher"), one(0.2, "unresolved"), one(0.001, "lower"), one(0.001, "not interpreted", interpreted=False),
              one(0.9, "equivalent")]  # fmt: skip
    adjust(family)
    assert [r["call_adjusted"] for r in family] == ["unresolved", "unresolved", "lower", "not interpreted", "equivalent"]
    assert family[3]["holm"] is None
    assert [r["holm"] for r in family if r["holm"]] == pytest.approx([0.09, 0.4, 0.004, 0.9])
    assert family[0]["bh"] == pytest.approx(0.06) and family[0]["call"] == "higher"


def test_models_as_they_are_get_no_word_of_training() -> None:
    arms = [BASE, BASE | {"id": "model=two"}]
    verdicts = {arm["id"]: {"t": {0: rows(n)}} for arm, n in zip(arms, (3, 9), strict=True)}
    levels = [trait_level(arm, SHARE, verdicts[arm["id"]]["t"], SETTINGS) for arm in arms]
    (gap,) = trait_differences(arms, [SHARE], verdicts, levels, SETTINGS)
    assert gap["scope"] == "over scenarios; these models as they are" and gap["family"] == "baseline"
    assert levels[1]["scope"] == "over scenarios; this model as it is"


def test_broken_replies_are_noted_at_the_arm() -> None:
    table = [r | {"loop": i < 5, "empty": i < 4} for i, r in enumerate(rows(3))]
    levels = [trait_level(ARM, SHARE, {0: table}, SETTINGS)]
    (note,) = arm_notes(ARM["id"], [SHARE], levels, [])
    assert note.startswith("Trait: 25% of its replies repeat themselves without end")


def test_an_ability_that_halves_is_noted_even_if_it_is_unresolved() -> None:
    arms, traits = [BASE, ARM], [GUARD]
    verdicts = {"untrained": {"g": {0: rows(3, 5)}}, ARM["id"]: {"g": {0: rows(1, 5)}}}
    levels = [trait_level(a, GUARD, verdicts[a["id"]]["g"], SETTINGS) for a in arms]
    found = trait_differences(arms, traits, verdicts, levels, SETTINGS)
    assert found[0]["call"] == "unresolved" and len(arm_notes(ARM["id"], traits, levels, found)) == 1


def test_two_judges_or_rubrics_are_refused_and_named() -> None:
    one, two = rows(1, judge="rules"), rows(1, judge="endpoint:m", rubric="ab12")
    assert one_judge("t", {"judge-1": one, "judge-2": one}) == ("rules", "rules 2") and one_judge("t", {}) == (None, None)
    with pytest.raises(SftdiffError) as refused:
        one_judge("t", {"judge-1": one, "judge-2": two, "judge-3": one})
    for text in ("trait t", "judge endpoint:m, rubric ab12: judge-2", "judge rules, rubric rules 2: judge-1, judge-3",
                 "judge=NAME"):  # fmt: skip
        assert text in str(refused.value)
    with pytest.raises(SftdiffError):
        one_judge("t", {"judge-1": [*one, row("z", 1.0, rubric="rules 3")]})
