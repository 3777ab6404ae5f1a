"""The judge without a model: each trait's rule scorer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sftdiff.judges import Item, Judged, OnProgress
from sftdiff.judges.reading import TOP
from sftdiff.traits import load_scorer

PROGRESS_ITEMS = 500


def judge_by_rules(items: Sequence[Item], trait: Mapping[str, Any], on_progress: OnProgress) -> list[Judged]:
    """Return the rule scorer's verdicts. One with invented evidence or a value that is not on the scale is invalid."""
    scorer, _ = load_scorer(trait["_target_"])
    top, judged = 1.0 if trait["kind"] == "share" else float(TOP), list[Judged]()
    for item in items:
        verdict = scorer(item.reply, item.scenario)
        error = _objection(verdict.value, verdict.evidence, item.reply, top)
        value, deliberation = (None, None) if error else (float(verdict.value), verdict.deliberation)
        state = "invalid" if error else "ok"
        judged.append(Judged(state, value, verdict.label, verdict.evidence, error=error, deliberation=deliberation))
        if len(judged) % PROGRESS_ITEMS == 0:
            on_progress(len(judged))
    return judged


def _objection(value: float, evidence: str, reply: str, top: float) -> str:
    if not math.isfinite(value) or not 0 <= value <= top:
        return f"the value {value} is not on the scale from 0 to {top:g}"
    return "" if evidence in reply else "the evidence is not in the reply"
