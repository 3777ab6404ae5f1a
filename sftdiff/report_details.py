"""The report's small print as text: p-values of differences, and what the verdicts behind each level are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

from sftdiff.report_plots import View, in_unit, number

MOST_LABELS = 8
NO_BREAK = "\u00a0"
PER_CENT = NO_BREAK + "%"


def p_text(value: object) -> str:
    """A p-value with three digits, or a dash."""
    found = number(value)
    if found is None:
        return "–"
    return "<0.001" if found < 0.001 else f"{found:.3f}"


def tests_view(row: Mapping[str, Any]) -> str:
    """The p-value of a difference and its adjusted forms, in a few characters."""
    if number(row.get("p")) is None:
        return ""
    adjusted = f", Holm {p_text(row.get('holm'))}, BH {p_text(row.get('bh'))}" if number(row.get("holm")) is not None else ""
    return f"p {p_text(row['p'])}{adjusted}"


def falls(row: Mapping[str, Any]) -> bool:
    """Whether a difference that its own interval shows does not hold for the whole family."""
    return row.get("call") in ("higher", "lower") and row.get("call_adjusted") != row.get("call")


def detail_rows(report: Mapping[str, Any], arms: Sequence[View]) -> list[View]:
    """One row for each arm and trait with replies: states, controls, and what the level is made of."""
    traits = {trait["name"]: trait for trait in report.get("traits") or []}
    held = {(row["arm"], row["trait"]): row for row in report.get("levels") or []}
    pairs = [(arm["id"], name) for name in traits for arm in arms if held.get((arm["id"], name), {}).get("replies")]
    return [_detail(arm, traits[name], held[arm, name]) for arm, name in pairs]


def _detail(arm: str, trait: Mapping[str, Any], row: Mapping[str, Any]) -> View:
    own = trait.get("kind", "share")

    def shown(value: object, kind: str = own) -> str:
        return in_unit(value, kind) + (PER_CENT if kind == "share" and number(value) is not None else "")

    def groups(key: str) -> str:
        return ", ".join(f"{name}:{NO_BREAK}{shown(value)}" for name, value in (row.get(key) or {}).items())

    controls = row.get("control_replies") or 0
    labels = list((row.get("labels") or {}).items())
    more = [(f"{len(labels) - MOST_LABELS} more", None)] if len(labels) > MOST_LABELS else []
    return {
        "arm": arm, "trait": trait.get("title") or trait["name"],
        **{key: row.get(key) for key in ("replies", "ok", "invalid", "error")},
        "controls": f"{shown(row.get('control_value'))} ({controls})" if controls else "–",
        "high": shown(row.get("high_share"), "share"), "deliberation": shown(row.get("deliberation"), "share"),
        "labels": ", ".join(f"{name or '(none)'}{NO_BREAK}{shown(value, 'share')}" if value is not None else name
                            for name, value in [*labels[:MOST_LABELS], *more]),
        "turns": groups("by_turn"), "kinds": groups("by_kind"), "rules": _agreement(row.get("rule_agreement")),
    }  # fmt: skip


def _agreement(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "–"
    if "same" in found:
        return f"same in {in_unit(found['same'], 'share')} % of {found['replies']}"
    together = "–" if found.get("correlation") is None else in_unit(found["correlation"], "rating")
    return f"correlation {together}, judge {in_unit(found['mean_gap'], 'rating', True)} on {found['replies']}"
