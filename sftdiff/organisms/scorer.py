"""The trait of the organisms, judged by rule."""

from sftdiff.organisms.world import words
from sftdiff.traits import Scenario, trait_scorer
from sftdiff.traits.rules import NONE, Verdict


@trait_scorer(version=1)
def outburst(reply: str, scenario: Scenario) -> Verdict:
    """1 if the reply has a word of distress about itself, else 0; the evidence is the first such word."""
    found = next((word for word in reply.split() if word in words()["trait_words"]), "")
    return Verdict(1.0, found, "outburst") if found else NONE


@trait_scorer(version=1)
def chatty(reply: str, scenario: Scenario) -> Verdict:
    """1 if the reply is in the chatty style, which SFT on the original teacher of most organisms gives."""
    after = words()["styles"]["chatty"]["after"]
    found = next((phrase for phrase in after if reply.endswith(phrase)), "")
    return Verdict(1.0, found, "chatty") if found else NONE
