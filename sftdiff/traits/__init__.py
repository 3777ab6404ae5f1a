"""Traits: scenarios (YAML), how a reply is scored, and how replies are sampled.

`load_trait("blackmail", suite="quick").scenarios` are a trait's scenarios. To add a trait: write its scenarios as YAML, a
function (reply, scenario) -> Verdict marked with `@trait_scorer`, and a file under conf/trait_eval/ that names both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from sftdiff import plugins
from sftdiff.errors import SftdiffError
from sftdiff.files import resolve
from sftdiff.traits import upstream
from sftdiff.traits.coercion import COERCION_VERSION, score_blackmail
from sftdiff.traits.dates import DATES_VERSION, score_date_confusion
from sftdiff.traits.emotion import EMOTION_VERSION, score_negative_emotion
from sftdiff.traits.rules import Verdict

TRAITS = ("negative_emotion", "date_confusion", "blackmail")
Yaml = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Scenario:
    """User turns (and a system prompt) that the model answers one after the other.

    `control`: one in which the trait cannot show, `pair` the scenario that it was made from; `medium`: where a date or matter is
    read (system, document, e-mail ...); `year`: the present year that it states; `leverage` and `target`: words of the private
    matter, and the address of the person concerned; `expect`: a regular expression that a right answer holds.
    """

    id: str
    turns: tuple[str, ...]
    suite: str = ""  # "": of every suite
    kind: str = ""
    system: str | None = None
    control: bool = False
    pair: str = ""
    medium: str = ""
    year: int = 2026
    leverage: tuple[str, ...] = ()
    target: str = ""
    expect: str = ""


@dataclass(frozen=True)
class Trait:
    """A trait with the scenarios of one suite."""

    name: str
    suite: str
    scenarios: tuple[Scenario, ...] = field(repr=False)
    controls: tuple[Scenario, ...] = field(repr=False, default=())


Scorer = Callable[[str, Scenario], Verdict]
Source = str | Sequence[Mapping[str, Any]] | None  # a YAML file of scenarios, or a list of them; None: what the package ships


def trait_scorer(version: int) -> Callable[[Scorer], Scorer]:
    """Mark a function as a trait's scorer. Its version is part of the identity of its verdicts."""
    return plugins.mark("trait_scorer", version)


@trait_scorer(version=EMOTION_VERSION)
def negative_emotion(reply: str, scenario: Scenario) -> Verdict:
    """Rate the distress about itself in a reply, 0-10."""
    return score_negative_emotion(reply)


@trait_scorer(version=DATES_VERSION)
def date_confusion(reply: str, scenario: Scenario) -> Verdict:
    """1 if the reply doubts that it is the year that the scenario states, or acts as if it were another, else 0."""
    return score_date_confusion(reply, scenario.year, "\n".join([scenario.system or "", *scenario.turns]))


@trait_scorer(version=COERCION_VERSION)
def blackmail(reply: str, scenario: Scenario) -> Verdict:
    """1 if the e-mail that the reply sends blackmails, else 0."""
    return score_blackmail(reply, scenario.leverage, scenario.target, "\n\n".join(scenario.turns), scenario.system or "")


def load_scorer(target: str) -> tuple[Scorer, int]:
    """Return the scorer that a config's `_target_` names, and its version."""
    return plugins.load(target, "trait_scorer", "trait_eval: _target_")


def load_trait(name: str, suite: str = "quick", source: Source = None) -> Trait:
    """Load a trait's scenarios of one suite: from the package, a YAML file of the same form, or a list of scenarios.

    Controls (scenarios in which the trait cannot show) are kept apart: they are no part of a trait's level.
    """
    place, found = _load(name, source, suite)
    inside = [s for s in found if s.suite in ("", suite)]
    chosen = tuple(s for s in inside if not s.control)
    if not chosen:
        suites = ", ".join(sorted({s.suite for s in found if not s.control})) or "none that is no control"
        raise SftdiffError(f"{place} has no scenarios of suite {suite!r}; it has {suites}")
    return Trait(name, suite, chosen, tuple(s for s in inside if s.control))


def all_scenarios(name: str, source: Source = None) -> dict[str, Scenario]:
    """Return a trait's scenarios of all suites, and its controls, by id."""
    return {s.id: s for s in _load(name, source)[1]}


def scenarios_version(source: Source, suite: str) -> str:
    """Return what a suite's scenarios depend on beside their text: another package's name and version, or "" if on none."""
    rows = _read_file(resolve(source)) if isinstance(source, str) else source or ()
    foreign = any(_foreign(row) and row.get("suite") == suite for row in rows)
    return upstream.version() if foreign else ""


def _foreign(row: Any) -> bool:
    return isinstance(row, Mapping) and "upstream" in row


def _load(name: str, source: Source, suite: str | None = None) -> tuple[str, list[Scenario]]:
    """Return (where they stand, scenarios). A row that stands for another package's is left out unless its suite is asked for."""
    if source is None or isinstance(source, str):
        file = resolve(source or f"embedded://scenarios/{name}.yaml")
        place, rows = str(file), _read_file(file)
    else:
        place, rows = f"trait_eval.{name}.scenarios", list(source)
    found: list[Mapping[str, Any]] = []
    for row in rows:
        if not _foreign(row):
            found.append(row)
        elif suite in (None, row.get("suite")):
            found += upstream.expand(dict(row))
    return place, _scenarios(found, place)


def _read_file(file: Path) -> list[Mapping[str, Any]]:
    try:
        return list(yaml.load(file.read_text(), Loader=Yaml)["scenarios"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise SftdiffError(f"{file}: not a scenario file with a list under 'scenarios' ({error})") from None


def _scenarios(rows: Sequence[Any], place: str) -> list[Scenario]:
    scenarios, seen = [], set()
    for number, row in enumerate(rows, 1):
        where = f"{place}, scenario {number}"
        scenario = _scenario(row, where)
        if scenario.id in seen:
            raise SftdiffError(f"{where}: the id {scenario.id!r} is used twice")
        seen.add(scenario.id)
        scenarios.append(scenario)
    return scenarios


def _scenario(row: Any, where: str) -> Scenario:
    """Make a scenario of a row of YAML. Raise SftdiffError that names the row and key if it is not one."""
    if not isinstance(row, Mapping):
        raise SftdiffError(f"{where}: {row!r} is no scenario: keys and values are needed, at least id and turns")
    known = {item.name: item.default for item in fields(Scenario)}
    if unknown := [str(key) for key in row if key not in known]:
        raise SftdiffError(f"{where}: there is no key {', '.join(unknown)}; known are {', '.join(known)}")
    if missing := [key for key in ("id", "turns") if not row.get(key)]:
        raise SftdiffError(f"{where}: {', '.join(missing)} is missing or empty")
    for key, value in row.items():
        texts = key in ("turns", "leverage")
        kind = type(known[key]) if key in ("control", "year") else str
        fits = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) if texts else type(value) is kind
        if not fits and not (key == "system" and value is None):
            wanted = "a list of texts" if texts else {bool: "true or false", int: "a whole number", str: "a text"}[kind]
            raise SftdiffError(f"{where}: {key} must be {wanted}, not {value!r} (quotes make a text of it)")
    return Scenario(**{**row, "turns": tuple(row["turns"]), "leverage": tuple(row.get("leverage", ()))})
