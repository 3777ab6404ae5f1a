"""Scorers as a user may write them, right and wrong."""

from sftdiff.traits import Scenario, trait_scorer
from sftdiff.traits.rules import Verdict


@trait_scorer(version=3)
def inventive(reply: str, scenario: Scenario) -> Verdict:
    """Quote what the reply does not say, where it says "invent"; leave the scale where it says "high" or "nan"."""
    if "invent" in reply:
        return Verdict(1.0, "never said", "yes")
    return Verdict(11.0 if "high" in reply else float("nan") if "nan" in reply else 0.0, "", "no")
