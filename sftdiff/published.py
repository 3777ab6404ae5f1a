"""Published findings beside what the arms of a diff show. Pure but for reading the file.

Conditions on transfers rest on the looks that were taken, or on what there is so far where none was; those on two arms' levels
on their paired difference over the seeds that both have, with a 95 % interval each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sftdiff import stats
from sftdiff.compare import SCALES
from sftdiff.decisions import CALLS
from sftdiff.diffing import Verdicts, sides_of, too_much_cut
from sftdiff.errors import SftdiffError, one_line
from sftdiff.files import resolve
from sftdiff.rounds import OPEN, Look
from sftdiff.transfer import RESAMPLES

LEVEL_CALLS = ("higher", "lower", "equivalent")  # of one arm's level against another's
STATES = ("not shown", "not run", "incomplete", OPEN, "shown")  # of a finding, the one that decides first
FINDING_KEYS = {"label", "says", "source", "traits", "shown"}


@dataclass(frozen=True)
class Condition:
    """The calls of an arm's transfer, or of its level against another arm's, at which a finding is shown."""

    arm: str
    against: str | None
    calls: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """A published finding: in words, where from, for which traits, and the conditions that must all hold."""

    label: str
    says: str
    source: str
    traits: tuple[str, ...]
    conditions: tuple[Condition, ...]


def load_published(path: str) -> list[Finding]:
    """Read and check a file of findings; raises SftdiffError, which names the file and the finding."""
    try:
        raw = list(yaml.safe_load(resolve(path).read_text(encoding="utf-8"))["findings"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SftdiffError(f"{path}: no findings ({one_line(error)})") from None
    found = []
    for number, own in enumerate(raw, 1):
        if not isinstance(own, dict) or set(own) != FINDING_KEYS or not own["traits"] or not own["shown"]:
            raise SftdiffError(f"{path}: finding {number}: it must have {', '.join(sorted(FINDING_KEYS))}, and nothing else")
        conditions = tuple(_condition(each, f"{path}: finding {number} ({own['label']})") for each in own["shown"])
        found.append(Finding(own["label"], own["says"], own["source"], tuple(own["traits"]), conditions))
    return found


def _condition(raw: Any, where: str) -> Condition:
    if not isinstance(raw, dict) or not {"arm", "call"} <= set(raw) <= {"arm", "call", "against"}:
        raise SftdiffError(f"{where}: write a condition as {{arm: NAME, call: [...]}}, or with against: NAME")
    known = LEVEL_CALLS if "against" in raw else CALLS
    calls = raw["call"]
    if not isinstance(calls, list) or not calls or not set(calls) <= set(known):
        raise SftdiffError(f"{where}: {raw['arm']}: call {calls!r} is no list of {', '.join(known)}")
    return Condition(raw["arm"], raw.get("against"), tuple(calls))


def lay_beside(
    findings: Sequence[Finding],
    traits: Mapping[str, Mapping[str, Any]],
    looks: Mapping[str, Mapping[str, Look]],
    verdicts: Mapping[str, Verdicts],
    planned: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Return each finding with its state on each of its traits that were measured, and the numbers behind it.

    Args:
        traits: their settings, by name.
        looks: trait -> arm -> the last look, or what there is so far.
        verdicts: those of each trait.
        planned: arm -> training seeds that it gets.
    """
    found = []
    for finding in findings:
        rows = []
        for trait in finding.traits:
            if trait in traits:
                made = [_check(c, traits[trait], looks[trait], verdicts[trait], planned) for c in finding.conditions]
                state = min((each["state"] for each in made), key=STATES.index)
                state = "incomplete" if state == "not run" and any(each["seeds"] for each in made) else state
                rows.append({"trait": trait, "state": state, "conditions": made})
        if rows:
            found.append({"label": finding.label, "says": finding.says, "source": finding.source, "rows": rows})
    return found


def _check(
    condition: Condition, trait: Mapping[str, Any], looks: Mapping[str, Look], verdicts: Verdicts, planned: Mapping[str, int]
) -> dict[str, Any]:
    arm, base = condition.arm, condition.against
    look = looks.get(arm) if base is None else _gap(arm, base, verdicts, trait)
    names = [arm] if base is None else [arm, base]
    made: dict[str, Any] = {"arm": arm, "against": base, "wanted": list(condition.calls)}
    made["planned"] = min(planned.get(name, 0) for name in names)
    if look is None:
        return made | {"state": "not run", "seeds": 0, "call": None, "value": None, "low": None, "high": None, "note": None}
    made |= {key: look.get(key) for key in ("seeds", "call", "value", "low", "high", "note")}
    if look["call"] == OPEN:
        return made | {"state": OPEN}
    return made | {"state": "shown" if look["call"] in condition.calls else "not shown"}


def _gap(arm: str, base: str, verdicts: Verdicts, trait: Mapping[str, Any]) -> Look | None:
    """Return the difference of two arms' levels on the seeds that both have; None where there are none."""
    seeds = sorted(set(verdicts.get(arm, {})) & set(verdicts.get(base, {})))
    if not seeds:
        return None
    look: Look = {"seeds": len(seeds), "call": OPEN}
    try:
        left, right = sides_of(verdicts, (arm, base), seeds)
        found = stats.difference(left, right, trait["kind"], SCALES[trait["kind"]], RESAMPLES, 0)
    except ValueError:  # no scenario has a verdict that counts on both sides
        return look | {"note": "no verdict that counts"}
    look |= {"value": found.value, "low": found.low, "high": found.high, "note": found.method}
    if note := too_much_cut(verdicts[arm], seeds) or too_much_cut(verdicts[base], seeds):
        return look | {"note": note}
    return look | {"call": stats.call(found, trait["smallest_effect"])}
