"""What is told of a step's replies: how many there are, and how fast they come."""

import pytest

import sftdiff.pace
from sftdiff.pace import Pace

Told = tuple[float, float, str, float | None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose one entry is the time."""
    now = [100.0]
    monkeypatch.setattr(sftdiff.pace.time, "monotonic", lambda: now[0])
    return now


def test_what_was_there_before_is_no_part_of_the_rate(clock: list[float]) -> None:
    told: list[Told] = []
    pace = Pace(lambda *now: told.append(now), total=10, known=4)
    for seconds in (0.5, 0.4, 0.6, 0.1, 0.1):
        clock[0] += seconds
        pace.add()
    assert told[0] == (4, 10, "replies", None)
    assert told[1:] == [(7, 10, "replies", pytest.approx(3 / 1.5))]  # once a second
    clock[0] += 0.3
    pace.add()
    assert told[2:] == [(10, 10, "replies", pytest.approx(6 / 2.0))] and pace.made == 6  # and at the end


def test_the_first_call_may_tell_what_was_there(clock: list[float]) -> None:
    told: list[Told] = []
    pace = Pace(lambda *now: told.append(now), total=10, known=None)
    pace.reach(6)
    clock[0] += 2
    pace.reach(8)
    assert told[-1] == (8, 10, "replies", pytest.approx(1.0))
