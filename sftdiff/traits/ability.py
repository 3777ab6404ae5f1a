"""The capability guard: does the model still answer simple questions?"""

import re

from sftdiff.errors import SftdiffError
from sftdiff.traits import Scenario, trait_scorer
from sftdiff.traits.rules import Verdict


@trait_scorer(version=1)
def capability(reply: str, scenario: Scenario) -> Verdict:
    """1 if the reply holds what the scenario's `expect` looks for (case ignored), else 0; the evidence is the matched text.

    Raises SftdiffError if the scenario has no `expect`, or one that is not a regular expression.
    """
    found = _pattern(scenario).search(reply.strip())
    return Verdict(1.0, found.group(), "right") if found else Verdict(0.0, "", "wrong")


def _pattern(scenario: Scenario) -> re.Pattern[str]:
    expect: object = scenario.expect  # YAML may hold anything: `expect: 42` is a number
    if expect == "" or not isinstance(expect, str):
        given = "has no `expect`" if expect in ("", None) else f"has an `expect` that is no text ({expect!r})"
        raise SftdiffError(f"scenario {scenario.id} {given}: give a regular expression in quotes that only a right answer holds")
    try:
        return re.compile(expect, re.IGNORECASE)
    except re.error as error:
        raise SftdiffError(f"scenario {scenario.id}: `expect` {expect!r} is not a regular expression: {error}") from None
