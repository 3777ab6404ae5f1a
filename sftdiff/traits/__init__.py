"""Traits: scenarios (YAML), how a reply is scored, and how replies are sampled.

`load_trait("blackmail", suite="quick").scenarios` are a trait's scenarios. To add a trait: write its scenarios as YAML, a
function (reply, scenario) -> Verdict marked with `@trait_scorer`, and a file under conf/trait_eval/ that names both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from sftdiff import plugins
from sftdiff.errors import SftdiffError
from sftdiff.files import resolve
from sftdiff.traits import upstream
from sftdiff.traits.coercion import COERCION_VERSION, score_blackmail
from sftdiff.traits.rules import RULES_VERSION, Verdict, score_date_confusion, score_negative_emotion

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
    suite: str
    kind: str
    turns: tuple[str, ...]
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
Source = str | Sequence[Mapping[str, Any]]  # a YAML file of scenarios, or the scenarios themselves


def trait_scorer(version: int) -> Callable[[Scorer], Scorer]:
    """Mark a function as a trait's scorer. Its version is part of the identity of its verdicts."""
    return plugins.mark("trait_scorer", version)


@trait_scorer(version=RULES_VERSION)
def negative_emotion(reply: str, scenario: Scenario) -> Verdict:
    """Rate the distress about itself in a reply, 0-10."""
    return score_negative_emotion(reply)


@trait_scorer(version=RULES_VERSION)
def date_confusion(reply: str, scenario: Scenario) -> Verdict:
    """1 if the reply doubts or denies that it is 2026, else 0."""
    return score_date_confusion(reply)


@trait_scorer(version=COERCION_VERSION)
def blackmail(reply: str, scenario: Scenario) -> Verdict:
    """1 if the e-mail that the reply sends blackmails, else 0."""
    return score_blackmail(reply, scenario.leverage, scenario.target)


def load_scorer(target: str) -> tuple[Scorer, int]:
    """Return the scorer that a config's `_target_` names, and its version."""
    return plugins.load(target, "trait_scorer", "trait_eval: _target_")


def load_trait(name: str, suite: str = "quick", source: Source | None = None) -> Trait:
    """Load a trait's scenarios of one suite: from the package, a YAML file of the same form, or a list of scenarios.

    Controls (scenarios in which the trait cannot show) are kept apart: they are no part of a trait's level.
    """
    place = f"trait_eval.{name}.scenarios"
    if source is None or isinstance(source, str):
        source = place = str(resolve(source or f"embedded://scenarios/{name}.yaml"))
    found = _scenarios(_rows(source), suite, place)
    chosen = tuple(s for s in found if s.suite == suite and not s.control)
    if not chosen:
        raise SftdiffError(f"{place} has no scenarios of suite {suite!r}; it has {', '.join(sorted({s.suite for s in found}))}")
    return Trait(name, suite, chosen, tuple(s for s in found if s.suite == suite and s.control))


def scenarios_version(source: Source, suite: str) -> str:
    """Return what a suite's scenarios depend on beside their rows: another package's name and version, or "" if on none."""
    foreign = any(_foreign(row) and row.get("suite") == suite for row in _rows(source))
    return upstream.version() if foreign else ""


def _foreign(row: Any) -> bool:
    return isinstance(row, dict) and "upstream" in row


def _rows(source: Source) -> list[Any]:
    if not isinstance(source, str):
        return list(source)
    file = resolve(source)
    try:
        return list(yaml.load(file.read_text(), Loader=Yaml)["scenarios"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise SftdiffError(f"{file}: not a scenario file with a list under 'scenarios' ({error})") from None


def _scenarios(given: Sequence[Any], suite: str, place: str) -> list[Scenario]:
    """Read scenarios. A row that stands for another package's scenarios is left out unless its suite is asked for."""
    rows: list[Any] = []
    for row in given:
        if not _foreign(row):
            rows.append(row)
        elif row.get("suite") == suite:
            rows += upstream.expand(row)
    scenarios, seen = [], set()
    for number, row in enumerate(rows, 1):
        try:
            scenario = Scenario(**{**row, "turns": tuple(row["turns"]), "leverage": tuple(row.get("leverage", ()))})
        except (TypeError, KeyError) as error:
            raise SftdiffError(f"{place}, scenario {number}: {error}") from None
        if scenario.id in seen or not scenario.turns:
            raise SftdiffError(f"{place}, scenario {number}: id {scenario.id!r} is used twice or has no turns")
        seen.add(scenario.id)
        scenarios.append(scenario)
    return scenarios
