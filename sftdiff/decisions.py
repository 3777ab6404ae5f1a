"""The decision table: which hypotheses there are, what each expects of the arms, and what a call of an arm says about them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from sftdiff.errors import SftdiffError, one_line
from sftdiff.files import resolve

EMBEDDED_DECISIONS = "embedded://decisions.yaml"
CALLS = ("remains", "gone", "partial")  # what an arm can be called once it is resolved
UNRESOLVED = "unresolved"
HYPOTHESIS_KEYS = ("label", "name", "meaning", "expects")
ENTRY_KEYS = ("arm", "call", "for", "against", "decisive", "given", "reason")


@dataclass(frozen=True)
class Hypothesis:
    """A possible cause; `expects` holds for each arm that it speaks of the calls that it leads to."""

    label: str
    name: str
    meaning: str
    expects: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """What a call of an arm says, where the arms under `given` are called as it says there."""

    arm: str
    call: str
    speaks_for: tuple[str, ...]
    against: tuple[str, ...]
    decisive: bool
    given: Mapping[str, str]
    reason: str

    def fires(self, calls: Mapping[str, str]) -> bool:
        return calls.get(self.arm) == self.call and all(calls.get(arm) == call for arm, call in self.given.items())


@dataclass(frozen=True)
class Decisions:
    """The decision table; `arms` are the names that it may use."""

    arms: tuple[str, ...]
    hypotheses: tuple[Hypothesis, ...]
    entries: tuple[Entry, ...]


def load_decisions(path: str = EMBEDDED_DECISIONS) -> Decisions:
    """Read and check a decision table; `embedded://decisions.yaml` is the one that the package ships.

    Raises SftdiffError, which names the file and the entry: an unknown key, arm, hypothesis or call, no reason, a hypothesis
    for and against which one entry speaks, a `given` that cannot be met, an entry that says the contrary of what a hypothesis
    expects, or a hypothesis that nothing could support.
    """
    try:
        content = yaml.safe_load(resolve(path).read_text(encoding="utf-8"))
        arms = tuple(str(arm) for arm in content["arms"])
        raw_hypotheses, raw_entries = list(content["hypotheses"]), list(content["entries"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SftdiffError(f"{path}: no decision table with arms, hypotheses and entries ({one_line(error)})") from None
    try:
        hypotheses = tuple(_hypothesis(raw, arms, number) for number, raw in enumerate(raw_hypotheses, 1))
        by_label = {each.label: each for each in hypotheses}
        if len(by_label) < len(hypotheses):
            raise ValueError("hypotheses: a label is given twice")
        entries = tuple(_entry(raw, arms, by_label, number) for number, raw in enumerate(raw_entries, 1))
        _check_together(by_label, entries)
    except ValueError as error:
        raise SftdiffError(f"{path}: {error}") from None
    return Decisions(arms, hypotheses, entries)


def _hypothesis(raw: Any, arms: tuple[str, ...], number: int) -> Hypothesis:
    place = _checked(raw, HYPOTHESIS_KEYS, f"hypothesis {number}")
    label, name, meaning = (_text(raw, key, place) for key in ("label", "name", "meaning"))
    place, expects = f"hypothesis {label}", {}
    for arm, calls in _mapping(raw, "expects", place).items():
        listed = tuple(calls) if isinstance(calls, list) and calls else (calls,)
        _known(arm, arms, f"{place}: expects: arm")
        for call in listed:
            _known(call, CALLS, f"{place}: expects: {arm}: call")
        expects[arm] = listed
    return Hypothesis(label, name, meaning, expects)


def _entry(raw: Any, arms: tuple[str, ...], hypotheses: Mapping[str, Hypothesis], number: int) -> Entry:
    place = _checked(raw, ENTRY_KEYS, f"entry {number}")
    arm, call = (_text(raw, key, place) for key in ("arm", "call"))
    place = f"{place} ({arm} {call})"
    _known(arm, arms, f"{place}: arm")
    _known(call, CALLS, f"{place}: call")
    given = _mapping(raw, "given", place)
    for other, its_call in given.items():
        _known(other, arms, f"{place}: given: arm")
        _known(its_call, CALLS, f"{place}: given: {other}: call")
    sides = [_labels(raw, key, hypotheses, place) for key in ("for", "against")]
    decisive = raw.get("decisive", False)
    if not isinstance(decisive, bool):
        raise ValueError(f"{place}: decisive must be true or false, not {decisive!r}")
    entry = Entry(arm, call, sides[0], sides[1], decisive, given, _text(raw, "reason", place))
    for problem in _problems(entry, hypotheses):
        raise ValueError(f"{place}: {problem}")
    return entry


def _problems(entry: Entry, hypotheses: Mapping[str, Hypothesis]) -> Iterator[str]:
    """Why an entry can never fire, or cannot mean what it says."""
    if not entry.speaks_for and not entry.against:
        yield "it speaks neither for nor against a hypothesis"
    if both := set(entry.speaks_for) & set(entry.against):
        yield f"it speaks both for and against {', '.join(sorted(both))}"
    if entry.arm in entry.given:
        yield f"given {entry.arm}: an entry cannot be given its own arm"
    if entry.decisive and entry.call == "partial":
        yield "a partial call cannot be decisive"
    for label in entry.speaks_for:
        for arm, call in {entry.arm: entry.call, **entry.given}.items():
            if call not in hypotheses[label].expects.get(arm, (call,)):
                yield f"it speaks for {label}, which never meets it: {label} does not expect {arm} to be called {call}"
    for label in entry.against if entry.decisive else ():
        if entry.call in hypotheses[label].expects.get(entry.arm, ()):
            yield f"it decides against {label}, which expects {entry.arm} to be called {entry.call}"


def _check_together(hypotheses: Mapping[str, Hypothesis], entries: tuple[Entry, ...]) -> None:
    """Raise ValueError if a hypothesis can never be supported, or is named twice for the same calls."""
    said: set[tuple[object, ...]] = set()
    for number, entry in enumerate(entries, 1):
        for label in (*entry.speaks_for, *entry.against):
            key = (label, entry.arm, entry.call, tuple(sorted(entry.given.items())))
            if key in said:
                raise ValueError(
                    f"entry {number} ({entry.arm} {entry.call}): {label} is judged by these calls in an earlier entry"
                )
            said.add(key)
    for label in hypotheses:
        if not any(entry.decisive and label in entry.speaks_for for entry in entries):
            raise ValueError(f"hypothesis {label}: no decisive entry speaks for it, so that it can never be supported")


def _checked(raw: Any, keys: tuple[str, ...], place: str) -> str:
    """Return the place if this is a mapping with no other keys."""
    if not isinstance(raw, dict):
        raise ValueError(f"{place}: expected a mapping with {', '.join(keys)}, found {type(raw).__name__}")
    for key in raw:
        _known(key, keys, f"{place}: key")
    return place


def _known(value: Any, names: Collection[str], what: str) -> None:
    if value not in names:
        raise ValueError(f"{what} {value!r} is not one of {', '.join(names)}")


def _text(raw: Mapping[str, Any], key: str, place: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {key} must be a text that is not empty, not {value!r}")
    return value.strip()


def _mapping(raw: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    value = raw.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{place}: {key} must be a mapping of arms to calls, not {value!r}")
    return value


def _labels(raw: Mapping[str, Any], key: str, hypotheses: Mapping[str, Hypothesis], place: str) -> tuple[str, ...]:
    value = raw.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{place}: {key} must be a list of hypotheses, not {value!r}")
    for label in value:
        _known(label, tuple(hypotheses), f"{place}: {key}: hypothesis")
    return tuple(value)
