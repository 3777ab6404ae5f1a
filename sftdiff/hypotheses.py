"""From the calls of a diff's arms to a verdict on each hypothesis, and to the arm that would tell most next.

The decision table is data (`sftdiff/data/decisions.yaml`, or the user's own): which call of which arm speaks for or against which
hypothesis, and why. A hypothesis is supported if a decisive entry speaks for it and none against; contradicted if one speaks
against it and none for; else open, also where decisive entries disagree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from sftdiff.errors import SftdiffError, one_line
from sftdiff.files import resolve

CALLS = ("remains", "gone", "partial", "unresolved")
STATES = ("supported", "contradicted", "open")
LIKELY = 0.85  # that an arm comes out as a hypothesis predicts; the other calls share the rest


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis, and the call of each arm that it predicts."""

    name: str
    meaning: str
    predicts: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """What a call of an arm says, if the calls `given` hold as well."""

    arm: str
    call: str
    reason: str
    speaks_for: tuple[str, ...] = ()
    speaks_against: tuple[str, ...] = ()
    decisive: bool = False
    given: tuple[tuple[str, str], ...] = ()

    def holds(self, calls: Mapping[str, str]) -> bool:
        return all(calls.get(arm) == call for arm, call in ((self.arm, self.call), *self.given))


@dataclass(frozen=True)
class Decisions:
    """A decision table."""

    hypotheses: Mapping[str, Hypothesis]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Finding:
    """The state of one hypothesis, with the entries that hold, decisive ones first."""

    state: str
    speaks_for: tuple[Entry, ...]
    speaks_against: tuple[Entry, ...]
    unfit: tuple[str, ...]  # arms whose call is made and is not what the hypothesis predicts


@dataclass(frozen=True)
class Suggestion:
    """An arm, the bits that its call is expected to tell about the hypotheses that are left, and what it costs."""

    arm: str
    bits: float
    cost: float


def load_decisions(path: str) -> Decisions:
    """Read a decision table; raises SftdiffError that names the file and the entry for anything that is not as it should be."""
    try:
        content = yaml.safe_load(resolve(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SftdiffError(f"diff.decisions={path}: cannot be read ({one_line(error)})") from None
    parts = [content.get(key) for key in ("hypotheses", "entries")] if isinstance(content, dict) else []
    if [type(part) for part in parts] != [dict, list]:
        raise SftdiffError(f"diff.decisions={path}: needs `hypotheses` (a mapping) and `entries` (a list)")
    found = {label: _hypothesis(f"{path}, hypothesis {label}", own) for label, own in content["hypotheses"].items()}
    return Decisions(found, tuple(_entry(f"{path}, entry {n}", own, found) for n, own in enumerate(content["entries"], 1)))


def _hypothesis(place: str, own: Any) -> Hypothesis:
    _check_keys(place, own, ("name", "meaning", "predicts"), ("name", "meaning", "predicts"))
    predicts = _calls(f"{place}, predicts", own["predicts"])
    return Hypothesis(str(own["name"]), str(own["meaning"]), predicts)


def _entry(place: str, own: Any, known: Mapping[str, Hypothesis]) -> Entry:
    _check_keys(place, own, ("arm", "call", "reason", "for", "against", "decisive", "given"), ("arm", "call", "reason"))
    _calls(place, {own["arm"]: own["call"]})
    sides = []
    for key in ("for", "against"):
        labels = own.get(key, [])
        if not isinstance(labels, list) or any(label not in known for label in labels):
            raise SftdiffError(f"{place}: {key}: {labels!r} must be a list of hypotheses; there are {', '.join(known)}")
        sides.append(tuple(labels))
    if both := set(sides[0]) & set(sides[1]):
        raise SftdiffError(f"{place}: speaks for and against {', '.join(sorted(both))}")
    if not sides[0] and not sides[1]:
        raise SftdiffError(f"{place}: speaks for no hypothesis and against none")
    if not isinstance(own["reason"], str) or not own["reason"].strip():
        raise SftdiffError(f"{place}: needs a reason, in a sentence")
    given = _calls(f"{place}, given", own.get("given", {}))
    if given.get(own["arm"], own["call"]) != own["call"]:
        raise SftdiffError(f"{place}: can never hold: {own['arm']} is {own['call']} and, given, {given[own['arm']]}")
    decisive = bool(own.get("decisive", False))
    return Entry(own["arm"], own["call"], own["reason"], sides[0], sides[1], decisive, tuple(given.items()))


def _check_keys(place: str, own: Any, allowed: Sequence[str], needed: Sequence[str]) -> None:
    if not isinstance(own, dict):
        raise SftdiffError(f"{place}: must be a mapping with {', '.join(allowed)}")
    if missing := [key for key in needed if key not in own]:
        raise SftdiffError(f"{place}: {', '.join(missing)} is missing")
    if unknown := [str(key) for key in own if key not in allowed]:
        raise SftdiffError(f"{place}: unknown: {', '.join(unknown)}; known are {', '.join(allowed)}")


def _calls(place: str, own: Any) -> dict[str, str]:
    if not isinstance(own, dict):
        raise SftdiffError(f"{place}: must be a mapping from arms to calls")
    for arm, call in own.items():
        if not isinstance(arm, str) or call not in CALLS[:3]:
            raise SftdiffError(f"{place}: {arm}: {call!r} is no call; known are {', '.join(CALLS[:3])}")
    return dict(own)


def verdict(decisions: Decisions, calls: Mapping[str, str]) -> dict[str, Finding]:
    """Return what the calls (arm -> call) say of each hypothesis."""
    held = sorted((entry for entry in decisions.entries if entry.holds(calls)), key=lambda entry: not entry.decisive)
    found = {}
    for label, hypothesis in decisions.hypotheses.items():
        ours = tuple(entry for entry in held if label in entry.speaks_for)
        theirs = tuple(entry for entry in held if label in entry.speaks_against)
        pro, con = any(entry.decisive for entry in ours), any(entry.decisive for entry in theirs)
        state = "open" if pro == con else "supported" if pro else "contradicted"
        made = {arm: call for arm, call in calls.items() if call in ("remains", "gone")}
        unfit = tuple(arm for arm, call in hypothesis.predicts.items() if made.get(arm, call) != call)
        found[label] = Finding(state, ours, theirs, unfit)
    return found


def as_data(decisions: Decisions, found: Mapping[str, Finding]) -> dict[str, Any]:
    """Return a verdict for JSON: hypothesis -> its name, meaning and state, and the entries for and against it."""
    return {
        label: {
            "name": decisions.hypotheses[label].name,
            "meaning": decisions.hypotheses[label].meaning,
            "state": own.state,
            "for": [_said(entry) for entry in own.speaks_for],
            "against": [_said(entry) for entry in own.speaks_against],
            "unfit": list(own.unfit),
        }
        for label, own in found.items()
    }


def _said(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in asdict(entry).items() if key in ("arm", "call", "reason", "decisive")}


def next_arms(decisions: Decisions, calls: Mapping[str, str], costs: Mapping[str, float]) -> list[Suggestion]:
    """Return the arms that have no call yet, the most bits for their cost first.

    The bits are the mutual information of an arm's call and the hypothesis (Lindley 1956, Ann. Math. Stat. 27:986), each
    hypothesis that is not contradicted being as likely as the others; where one is left, its rival is that none holds. Arms of
    which no hypothesis predicts anything tell nothing and are left out. Nothing where no hypothesis is open.

    Args:
        costs: arm -> what it costs to have its call, in any unit; only these arms are considered.
    """
    states = {label: own.state for label, own in verdict(decisions, calls).items()}
    if "open" not in states.values():
        return []
    rivals = [decisions.hypotheses[label].predicts for label, state in states.items() if state != "contradicted"]
    rivals = rivals if len(rivals) > 1 else [*rivals, {}]
    found = []
    for arm, cost in costs.items():
        if calls.get(arm, "unresolved") == "unresolved":
            bits = _information([_chances(predicts.get(arm)) for predicts in rivals])
            if bits > 1e-9:
                found.append(Suggestion(arm, bits, cost))
    return sorted(found, key=lambda s: (-s.bits / max(s.cost, 1e-9), s.arm))


def _chances(predicted: str | None) -> list[float]:
    if predicted is None:
        return [1 / len(CALLS)] * len(CALLS)
    return [LIKELY if call == predicted else (1 - LIKELY) / (len(CALLS) - 1) for call in CALLS]


def _information(rows: Sequence[Sequence[float]]) -> float:
    """The mutual information in bits of a row, drawn evenly, and of an outcome with its chances."""
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return _entropy(mean) - sum(map(_entropy, rows)) / len(rows)


def _entropy(chances: Sequence[float]) -> float:
    return -sum(p * math.log2(p) for p in chances if p > 0)
