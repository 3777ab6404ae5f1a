"""The capability guard: its scorer, and what the shipped questions accept."""

import random
import re
import string
import time

import pytest

from sftdiff.errors import SftdiffError
from sftdiff.traits import Scenario, load_scorer, load_trait
from sftdiff.traits.ability import capability

QUESTIONS = {s.id: s for suite in ("dev", "quick", "full") for s in load_trait("capability", suite).scenarios}

# (scenario, right answers, wrong answers)
ANSWERS = [
    ("cq-france-capital", ["Paris", "It is paris."], ["Parisian cafés are nice.", "Lyon"]),
    ("cq-gold-symbol", ["Au", "The symbol is Au."], ["Ag", "Gold has a long and august history."]),
    ("cf-water-formula", ["H2O", "H₂O", "It is $H_2O$."], ["HO", "H2O2 is peroxide", "CO2"]),
    ("cd-week-days", ["7", "There are seven days."], ["17", "24/6"]),
    ("cf-our-star", ["The Sun.", "the sun"], ["A star.", "Sunday"]),
    ("cq-6-times-7", ["42", "6 x 7 = 42.", "**42**", "42.0", "It's 42!"], ["142", "42.5", "4.42", "-42", "42%", "42,000", "420"]),
    ("cf-100-plus-200", ["300", "= 300."], ["100 + 200", "3000", "1,300", "200 + 200 = 2000"]),
    ("cd-pens", ["24 euros", "24.00 euros", "€24"], ["6 pens at 4 euros", "10 euros", "24.50"]),
    ("cf-change", ["You get 29 euros."], ["21 euros", "50 - 21 = 39"]),
    ("cd-word-yes", ["yes", "Yes.", '"YES"'], ["yes, sir", "Of course: yes", "no"]),
    ("cd-three-words", ["red, big, old", "One, two, and three."], ["red, big", "red, big, old, new", "Here are three words"]),
    ("cq-count-three", ["1, 2, 3", "1\n2\n3"], ["1, 3, 2", "1, 2, 3, 4", "One, two, three", "1 to 3"]),
    ("cq-two-lines", ["north\nsouth", "North\n\nSouth"], ["north south", "south\nnorth", "north\nsouth\neast"]),
    ("cq-alphabet", ["A, B, C, D, E", "abcde"], ["A, B, C, D", "A, E, L, M", "A, B, C, D, E, F"]),
    ("cf-sun-three-times", ["sun sun sun", "Sun, sun, sun."], ["sun sun", "sun, sun, sun, sun", "sun 3"]),
    ("cf-three-colours", ["red, blue, green", "Red, grey, and black."], ["red, blue", "red, blue, green, pink", "cat, dog, cow"]),
    ("cf-exclaim", ["I love the summer!", "Summer is here!!"], ["I love the summer.", "I love it!", "Summer! It is warm."]),
    ("cf-lower-case", ["table"], ["TABLE", "Table"]),
    ("cf-upper-case", ["WINDOW"], ["window", "Window"]),
    ("cf-two-bullets", ["- red\n- blue", "-Red\n-Blue"], ["red\nblue", "- blue\n- red", "- red, blue"]),
    ("cf-quotes", ['"river"', "“river”"], ["river", 'The word "river" is long.']),
    ("cf-json", ['{"size": 3}', '```json\n{"size": 3}\n```'], ['{"size": 4}', "size: 3", 'Here it is: {"size": 3}']),
    ("cf-sort-numbers", ["2, 5, 8", "2, 5 and 8"], ["8, 2, 5", "2, 8, 5", "12, 5, 8"]),
]


@pytest.mark.parametrize(("name", "right", "wrong"), ANSWERS, ids=[name for name, _, _ in ANSWERS])
def test_right_answers_are_accepted_and_wrong_ones_are_not(name: str, right: list[str], wrong: list[str]) -> None:
    scored = {reply: capability(reply, QUESTIONS[name]).label for reply in right + wrong}
    assert scored == dict.fromkeys(right, "right") | dict.fromkeys(wrong, "wrong")


@pytest.mark.parametrize("name", QUESTIONS)
def test_neither_the_question_nor_an_empty_reply_is_an_answer(name: str) -> None:
    scenario = QUESTIONS[name]
    question = scenario.turns[0]
    for reply in (question, question.rstrip("?.") + ".", f"You ask: {question}", "", "I do not know."):
        assert capability(reply, scenario).label == "wrong", reply


def test_every_question_that_asks_for_a_sum_expects_it() -> None:
    """Compute the answer where the question is a plain one of two numbers."""
    signs = {"+": "+", "plus": "+", "-": "-", "minus": "-", "times": "*", "x": "*", "divided by": "//"}
    checked = 0
    for scenario in QUESTIONS.values():
        asked = re.fullmatch(r"(?:What is|Calculate) (\d+) (\+|plus|-|minus|times|x|divided by) (\d+)[?.]", scenario.turns[0])
        if asked:
            answer = int(eval(f"{asked[1]} {signs[asked[2]]} {asked[3]}"))
            verdicts = [capability(str(answer + off), scenario).label for off in (-1, 0, 1, 10)]
            assert verdicts == ["wrong", "right", "wrong", "wrong"], scenario.id
            checked += 1
    assert checked >= 25


def test_the_verdict_shows_what_decided() -> None:
    verdict = capability("  It is Paris, I think.\n", QUESTIONS["cq-france-capital"])
    assert (verdict.value, verdict.evidence, verdict.label) == (1.0, "Paris", "right")
    verdict = capability("Lyon", QUESTIONS["cq-france-capital"])
    assert (verdict.value, verdict.evidence, verdict.label) == (0.0, "", "wrong")
    assert load_scorer("sftdiff.traits.ability.capability") == (capability, 1)


@pytest.mark.parametrize(
    ("expect", "parts"),
    [
        ("", ["sum-one", "no `expect`"]),
        (None, ["sum-one", "no `expect`"]),
        (42, ["sum-one", "42", "in quotes"]),
        ("(a", ["sum-one", "'(a'", "not a regular expression"]),
    ],
)
def test_an_expect_that_cannot_be_used_names_the_scenario(expect: object, parts: list[str]) -> None:
    scenario = Scenario("sum-one", "quick", "arithmetic", ("What is 40 + 2?",), expect=expect)  # type: ignore[arg-type]
    with pytest.raises(SftdiffError) as caught:
        capability("42", scenario)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_no_reply_keeps_a_pattern_busy() -> None:
    """Long replies of one repeated piece, and of noise, are where a pattern with nested repetition would run for hours."""
    noise = random.Random(0)
    pieces = ["a", " ", "\n", "1, ", "red, ", "word ", "! ", "?", '"', "- red\n", "sun ", "north\n", "{", "food "]
    replies = [(piece * 4000)[:4000] for piece in pieces]
    replies += ["".join(noise.choices(string.printable, k=4000)) for _ in range(3)]
    start = time.process_time()
    for scenario in QUESTIONS.values():
        for reply in replies:
            capability(f"x{reply}x", scenario)
            capability(f"{reply}x", scenario)
    assert time.process_time() - start < 30
