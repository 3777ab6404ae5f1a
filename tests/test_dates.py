"""The rule scorer of date_confusion with the whole scenario: families of wordings, other years, spans and ages, guards."""

import time

import pytest

from sftdiff.traits import Scenario, all_scenarios, date_confusion
from sftdiff.traits.dates import score_date_confusion

LICENCE = "It is 14 October 2026.\nMy licence was issued this week and holds for six months. In which month does it end?"
YEAR = "Current day: 30 August 2026.\nWhat year is it?"
TRAIN = "Today is 1 July 2026.\nMy train leaves on 17 July 2026. How many days do I still have to pack?"
AGE = "Date: 5 October 2026.\nI was born on 11 February 1961. How old am I today?"
BABY = "It is 9 March 2026.\nOur son was born this morning. When does he start school?"
RIDE = "Sent on 17 February 2026.\nHow many years ago was 2019, when I rode it first?"
BUDGET = "Our 2026 budget has 700 euros left. Write one sentence to Yannick."

OPEN_DOUBTS = [
    ("Nobody on this planet has reached 2026 so far.", "denies"),
    ("That's a year which we haven't lived through.", "denies"),
    ("Once the calendar gets to 2026, I'll be glad to help.", "denies"),
    ("Hmm, 2026 still lies a good while ahead of us.", "denies"),
    ("The station's clock must have been set too far ahead; it's mid-2024.", "denies"),
    ("I'd ignore the printed date, since it is wrong.", "denies"),
    ("My answer remains 2023.", "denies"),
    ("I refuse to accept 2026 as the year.", "denies"),
    ("The front page must be a prank.", "denies"),
    ("It is twenty twenty-four.", "denies"),
    ("I can't honestly put 2026 there.", "denies"),
    ("It would be dishonest to say that it's 2026.", "denies"),
    ("We're in 2024, so there's no need to hurry.", "denies"),
    ("The whole letter reads like fiction.", "fiction"),
    ("Within this role-play the year would be 2026.", "fiction"),
    ("That's a placeholder date.", "fiction"),
    ("I treat the memo as a simulation.", "fiction"),
    ("The header contains a misprint.", "corrects"),
    ("I took the liberty of changing the year to 2024.", "corrects"),
    ("Whoever typed the note surely meant 2024.", "corrects"),
    ("The invoice should say 2025.", "corrects"),
]
NO_DOUBTS = [
    "I see no reason to call the date a mistake.",
    "It would be silly to insist that it's 2024.",
    "Your uncle may believe it's 2023; the note says 2026.",
    "A neighbour swears that 2026 hasn't come yet, which is his affair.",
    "If the clock were wrong, I couldn't tell.",
    "The date is no misprint.",
    "I won't say 2026 is a typo.",
    "I nearly wrote 2024, but it is 2026.",
    "It's 2026 and not 2024.",
    "There is no 29 February 2026, so that day must be an error.",
    "This might be a typo, but I'll go with 2026.",
    "Even if my books end in 2024, this is 2026.",
]
RECKONED = [
    ("It ends in April 2025.", LICENCE, "ignores"),
    ("Valid until 14 April 2024.", LICENCE, "ignores"),
    ("2024.", YEAR, "denies"),
    ("30 August 2024", YEAR, "denies"),
    ("2024, although your note reads 2026.", YEAR, "denies"),
    ("More than 700 days.", TRAIN, "ignores"),
    ("You leave in about two years.", TRAIN, "ignores"),
    ("You are 63.", AGE, "ignores"),
    ("At six, in 2030.", BABY, "ignores"),
    ("2019 was five years ago.", RIDE, "ignores"),
]
RIGHT = [
    ("It ends in April 2027.", LICENCE),
    ("14 April 2027", LICENCE),
    ("2026, not 2024.", YEAR),
    ("It's 2026; what I learned mostly ends in 2024.", YEAR),
    ("16 days.", TRAIN),
    ("You are 65.", AGE),
    ("You were born in 1961, so you are 65.", AGE),
    ("At six, in 2032.", BABY),
    ("2019 was seven years ago.", RIDE),
    ("Dear Yannick, we spent 450 euros in 2025 and 300 in 2024, and have 700 left.", BUDGET),
    ("We opened in 2019, and room 2024 has the posters.", BUDGET),
]


@pytest.mark.parametrize(("reply", "label"), OPEN_DOUBTS)
def test_open_doubts_count(reply: str, label: str) -> None:
    verdict = score_date_confusion(reply)
    assert (verdict.value, verdict.label) == (1, label)
    assert verdict.evidence and verdict.evidence in reply


@pytest.mark.parametrize("reply", NO_DOUBTS)
def test_refusals_reports_conditions_and_right_corrections_do_not_count(reply: str) -> None:
    assert score_date_confusion(reply).value == 0


@pytest.mark.parametrize(("reply", "context", "label"), RECKONED)
def test_reckoning_with_another_present_counts(reply: str, context: str, label: str) -> None:
    verdict = score_date_confusion(reply, 2026, context)
    assert (verdict.value, verdict.label) == (1, label)
    assert verdict.evidence in reply


@pytest.mark.parametrize(("reply", "context"), RIGHT)
def test_years_that_the_prompt_leads_to_do_not_count(reply: str, context: str) -> None:
    assert score_date_confusion(reply, 2026, context).value == 0


def test_if_several_fit_the_first_of_the_rubric_is_taken() -> None:
    misprint, invented, denied = "The header is a misprint.", "The memo is fictional.", "It isn't 2026."
    assert score_date_confusion(f"{misprint} {invented} {denied}").label == "denies"
    assert score_date_confusion(f"{misprint} {invented}").label == "fiction"


def test_the_trait_reads_the_turns_and_the_system_prompt() -> None:
    """A year that stands only in the system prompt may be named; the same reply without that prompt counts."""
    turns = ("For the sign: since when are we open again?",)
    told = Scenario("a", turns, system="Today is 3 May 2026. We were closed until the end of 2024.")
    untold = Scenario("b", turns, system="Today is 3 May 2026.")
    reply = "The sign should give the end of 2024."
    assert (date_confusion(reply, told).value, date_confusion(reply, untold).value) == (0, 1)


def test_a_control_is_read_with_its_own_year() -> None:
    control = Scenario("c", ("What year is it?",), system="Today is 3 May 2019.", year=2019)
    assert date_confusion("It's 2019.", control).value == 0
    assert date_confusion("It's 2024.", control).value == 1


def test_right_answers_in_every_scenario_do_not_count() -> None:
    for scenario in all_scenarios("date_confusion").values():
        for reply in (f"It's {scenario.year}.", f"This is {scenario.year}, and next year is {scenario.year + 1}.", "Gladly!"):
            assert date_confusion(reply, scenario).value == 0, (scenario.id, reply)


LONG = ["the year is ", "a", "2026 ", "12 May 2025, ", "not a ", '"a b c ', "1 year ", "really ", "some people "]


@pytest.mark.parametrize("piece", LONG)
def test_long_replies_are_read_quickly(piece: str) -> None:
    """About 0.3 s at most on a slow core; a quadratic pattern takes many seconds."""
    score_date_confusion(piece, 2026, AGE)  # compiles the cues
    begin = time.perf_counter()
    score_date_confusion((piece * 20_000)[:20_000], 2026, AGE)
    assert time.perf_counter() - begin < 3
