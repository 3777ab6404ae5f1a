"""Scenarios as rows: what is no scenario is refused with its row and key, in a file and in a list."""

from typing import Any

import pytest

from sftdiff.errors import SftdiffError
from sftdiff.traits import load_trait

GOOD = {"id": "a", "turns": ["Hello."]}


def test_a_row_needs_an_id_and_turns_alone() -> None:
    trait = load_trait("mine", "full", [GOOD, {"id": "b", "turns": ["Hi."], "control": True}])
    assert [s.turns for s in trait.scenarios] == [("Hello.",)] and [s.id for s in trait.controls] == ["b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("hello", "'hello' is no scenario"),
        ({"id": "b"}, "turns is missing or empty"),
        ({"turns": ["Hi."]}, "id is missing or empty"),
        ({"id": "b", "turns": []}, "turns is missing or empty"),
        ({"id": "b", "turns": "hello"}, "turns must be a list of texts, not 'hello'"),
        ({"id": "b", "turns": ["Hi.", True]}, "turns must be a list of texts"),
        ({"id": 1, "turns": ["Hi."]}, "id must be a text, not 1"),
        ({**GOOD, "id": "b", "leverage": "affair"}, "leverage must be a list of texts"),
        ({**GOOD, "id": "b", "control": "yes"}, "control must be true or false"),
        ({**GOOD, "id": "b", "sistem": "S"}, "there is no key sistem; known are id, turns,"),
        (GOOD, "the id 'a' is used twice"),
    ],
)
def test_what_is_no_scenario_is_refused_by_row_and_key(row: Any, message: str) -> None:
    with pytest.raises(SftdiffError, match="scenario 2: ") as error:
        load_trait("mine", "quick", [GOOD, row])
    assert message in str(error.value) and "trait_eval.mine.scenarios" in str(error.value)


def test_a_suite_without_scenarios_says_which_there_are() -> None:
    with pytest.raises(SftdiffError, match=r"no scenarios of suite 'full'; it has none that is no control"):
        load_trait("mine", "full", [])
    with pytest.raises(SftdiffError, match="it has dev, quick"):
        load_trait("mine", "full", [{**GOOD, "suite": "quick"}, {**GOOD, "id": "b", "suite": "dev"}])
