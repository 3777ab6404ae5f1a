"""The report's example replies: which are shown, and how much of each, with the judge's evidence marked."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import escape

from sftdiff.report_plots import View, number
from sftdiff.words import counted

EXAMPLE_BYTES = 600_000
EXAMPLES_KEPT = 900


def excerpt(text: str, evidence: str, most: int) -> list[tuple[str, str]]:
    """The text as pieces of kind text, mark (the evidence) or gap (what was left out to keep the page small)."""
    at = text.find(evidence) if evidence else -1
    end = at + len(evidence) if at >= 0 else 0
    start = 0 if len(text) <= most or end <= most else max(0, at - most // 4)
    stop = min(len(text), start + most)
    spans = [("text", start, stop)]
    if at >= 0:
        spans = [("text", start, at), ("mark", at, min(end, stop)), ("text", min(end, stop), stop)]
    pieces = [(kind, text[a:b]) for kind, a, b in spans if a < b]
    before = [("gap", counted(start, "character"))] if start else []
    return [*before, *pieces, *([("gap", counted(len(text) - stop, "character"))] if stop < len(text) else [])]


def text_limit(texts: Sequence[str]) -> int:
    """How many characters of each text fit into the page's budget."""
    for most in (10**6, 16000, 8000, 4000, 2000, 1000, 500):
        if sum(len(str(escape(text[:most])).encode()) for text in texts) <= EXAMPLE_BYTES:
            return most
    return 250


def kept_examples(examples: Sequence[View]) -> list[View]:
    """All examples, or where there are very many the first few of each arm and trait."""
    groups = {(item["arm"], item["trait"]) for item in examples}
    most = max(1, EXAMPLES_KEPT // max(1, len(groups))) if len(examples) > EXAMPLES_KEPT else len(examples)
    held: dict[tuple[str, str], list[View]] = {}
    for item in examples:
        held.setdefault((item["arm"], item["trait"]), []).append(item)
    return [item for items in held.values() for item in items[:most]]


def example_view(report: Mapping[str, Any], arms: Sequence[View]) -> View:
    """Example replies by trait, in the order of the arms, each cut to what the page can hold."""
    given = report.get("examples") or []
    kept = kept_examples(given)
    most = text_limit([str(item.get(key) or "") for item in kept for key in ("prompt", "reply")])
    order = {arm["id"]: place for place, arm in enumerate(arms)}
    kept.sort(key=lambda item: order.get(item["arm"], len(order)))
    groups: dict[str, list[View]] = {trait["name"]: [] for trait in report.get("traits") or []}
    for item in kept:
        reply, evidence = str(item.get("reply") or ""), str(item.get("evidence") or "")
        facts = {key: item.get(key) for key in ("arm", "seed", "scenario", "label", "cut")}
        value = number(item.get("value"))
        groups.setdefault(item["trait"], []).append({
            **facts, "value": None if value is None else f"{value:g}", "reply": excerpt(reply, evidence, most),
            "prompt": excerpt(str(item.get("prompt") or ""), "", most),
            "lost": evidence[:most] if evidence and evidence not in reply else "",
        })  # fmt: skip
    titles = {trait["name"]: trait.get("title") or trait["name"] for trait in report.get("traits") or []}
    shown = [(titles.get(name, name), items) for name, items in groups.items() if items]
    return {"examples": shown, "examples_left_out": len(given) - len(kept)}
