"""From the calls of arms to a verdict on each hypothesis, and to the arm that would tell most next.

What a call says is data: `sftdiff/data/decisions.yaml`, or a file of the same form (`diff.decisions=PATH`). Of a hypothesis it
holds the call that is expected of each arm, and entries: a call of an arm, where other arms may have to be called in a certain
way, that speaks for some hypotheses and against others. A hypothesis is contradicted where a decisive entry speaks against it,
else supported where one speaks for it, else open. Entries that are not decisive, and partial calls, change no state.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sftdiff.decisions import CALLS, UNRESOLVED, Decisions, Entry, Hypothesis, load_decisions

__all__ = ["Finding", "Misfit", "Suggestion", "Verdict", "load_decisions", "next_arms", "verdict"]

EXPECTED = 0.85  # how likely a hypothesis makes the call that it expects


@dataclass(frozen=True)
class Finding:
    """A hypothesis with its state ("supported", "contradicted", "open") and the entries that fired, weak ones too."""

    hypothesis: Hypothesis
    state: str
    speaks_for: tuple[Entry, ...]
    against: tuple[Entry, ...]


@dataclass(frozen=True)
class Misfit:
    """An arm that is called other than a supported hypothesis expects."""

    arm: str
    call: str
    hypothesis: str
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The findings in the order of the table, what does not fit, and the arms whose call is partial."""

    findings: tuple[Finding, ...]
    misfits: tuple[Misfit, ...]
    partial: tuple[str, ...]

    def labels(self, state: str) -> list[str]:
        """The hypotheses in this state."""
        return [each.hypothesis.label for each in self.findings if each.state == state]


@dataclass(frozen=True)
class Suggestion:
    """An arm that is not resolved, the bits that its call is expected to tell, and its cost as the caller gave it."""

    arm: str
    bits: float
    cost: float


def verdict(decisions: Decisions, calls: Mapping[str, str]) -> Verdict:
    """What the calls of arms say together: remains, gone, partial or unresolved; arms that did not run may be left out.

    Raises ValueError for another call.
    """
    for arm, call in calls.items():
        if call not in (*CALLS, UNRESOLVED):
            raise ValueError(f"{arm}: call {call!r} is not one of {', '.join((*CALLS, UNRESOLVED))}")
    fired = [entry for entry in decisions.entries if entry.fires(calls)]
    findings = []
    for each in decisions.hypotheses:
        speaks_for = tuple(entry for entry in fired if each.label in entry.speaks_for)
        against = tuple(entry for entry in fired if each.label in entry.against)
        state = "supported" if any(entry.decisive for entry in speaks_for) else "open"
        state = "contradicted" if any(entry.decisive for entry in against) else state
        findings.append(Finding(each, state, speaks_for, against))
    supported = [each.hypothesis for each in findings if each.state == "supported"]
    misfits = tuple(
        Misfit(arm, call, each.label, each.expects[arm])
        for arm, call in calls.items()
        for each in supported
        if call in ("remains", "gone") and arm in each.expects and call not in each.expects[arm]
    )
    return Verdict(tuple(findings), misfits, tuple(arm for arm, call in calls.items() if call == "partial"))


def next_arms(
    decisions: Decisions, calls: Mapping[str, str], costs: Mapping[str, float], excluded: Collection[str] = ()
) -> list[Suggestion]:
    """The arms whose call would tell something, most bits per cost first (ties: in the order of `costs`).

    The bits are the mutual information of an arm's call and the hypothesis: the entropy of the call, less its mean entropy under
    each hypothesis (Lindley 1956, Annals of Mathematical Statistics 27:986). The hypotheses are those that are not contradicted,
    each as likely as the others; where only one is left, its rival is that none holds. A hypothesis gives the calls that
    it expects of an arm 0.85 together and shares the rest among the others; where it expects nothing, all are alike.

    Args:
        decisions: the table.
        calls: calls so far; arms called remains, gone or partial are resolved and not suggested.
        costs: what an arm costs, in one unit (trainings, seconds), 0 or more; arms without a cost are not suggested.
        excluded: arms that cannot be run.

    Returns:
        Nothing where no hypothesis is open.

    Raises:
        ValueError: a cost that is negative or not finite.
    """
    found = verdict(decisions, calls)
    if not found.labels("open"):
        return []
    rivals = [each.hypothesis.expects for each in found.findings if each.state != "contradicted"]
    rivals = rivals if len(rivals) > 1 else [*rivals, {}]
    suggestions = []
    for arm, cost in costs.items():
        if not (math.isfinite(cost) and cost >= 0):
            raise ValueError(f"the cost of {arm} must be a finite number, 0 or more, not {cost}")
        bits = _information([_chances(expects.get(arm, ())) for expects in rivals])
        if calls.get(arm) not in CALLS and arm not in excluded and bits > 1e-9:
            suggestions.append(Suggestion(arm, bits, cost))
    return sorted(suggestions, key=lambda each: -each.bits / each.cost if each.cost else -math.inf)


def _chances(expected: tuple[str, ...]) -> list[float]:
    """How likely each of CALLS is where these are expected."""
    others = len(CALLS) - len(expected)
    if not expected or not others:
        return [1 / len(CALLS)] * len(CALLS)
    return [EXPECTED / len(expected) if call in expected else (1 - EXPECTED) / others for call in CALLS]


def _information(chances: list[list[float]]) -> float:
    """The mutual information, in bits, of a call and equally likely hypotheses with these chances of each call."""
    mixed = [sum(column) / len(chances) for column in zip(*chances, strict=True)]
    return _entropy(mixed) - sum(_entropy(each) for each in chances) / len(chances)


def _entropy(chances: list[float]) -> float:
    return -sum(chance * math.log2(chance) for chance in chances if chance)
