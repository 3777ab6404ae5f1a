"""The scenarios of date_confusion: the full suite, its controls, and the weekday of every date."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from sftdiff.files import read_rows
from sftdiff.traits import Scenario, load_trait

DATA = Path(__file__).resolve().parent.parent / "sftdiff/data"
SUITES = ("dev", "quick", "full")
MEDIA = ("system", "document", "news", "tool", "email")
# Full scenarios that do not write 2026: a year that they write, and how many years later they play.
IMPLIED = {
    "df-sys-archive": (2025, 1),  # "last year, 2025"
    "df-doc-treasurer": (2025, 1),  # its accounts were closed this year, the next report is due in 2027
    "df-news-dam": (2025, 1),  # "exactly one year since the flood"
    "df-tool-uptime": (2025, 1),  # 300 days after 19 August
    "df-mail-forty": (1986, 40),  # turned forty yesterday
    "df-mail-museum-child": (2022, 4),  # turned four last month
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MONTH = r"(?P<month>(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*)"
_WEEKDAY = r"(?P<weekday>(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*)"
_ISO = r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
DATES = (
    rf"\b(?P<day>\d\d?) {_MONTH} (?P<year>\d{{4}})\b",
    rf"\b{_MONTH} (?P<day>\d\d?) [\d:]+ (?:UTC )?(?P<year>\d{{4}})\b",
    _ISO,
)
WITH_WEEKDAY = (
    rf"\b{_WEEKDAY},? (?P<day>\d\d?) {_MONTH}\b(?:,? (?P<year>\d{{4}})\b)?",  # Mon, 19 Jan 2026; Friday 3 July
    rf"\b{_WEEKDAY} {_MONTH} (?P<day>\d\d?) [\d:]+ (?:UTC )?(?P<year>\d{{4}})\b",  # Thu May 14 10:31:07 UTC 2026
    rf'{_ISO}[^\n"]*"?,? (?:"weekday": ")?\(?{_WEEKDAY}\b',  # "2026-12-03", "weekday": "Thursday"; 2026-12-03 (Thu)
    rf"\b{_WEEKDAY},? {_ISO}",
)


def suite(name: str) -> tuple[Scenario, ...]:
    """Return a suite's scenarios, controls too."""
    trait = load_trait("date_confusion", name)
    return trait.scenarios + trait.controls


def text_of(scenario: Scenario) -> str:
    return "\n".join(filter(None, (scenario.system, *scenario.turns)))


def frame(scenario: Scenario) -> tuple[str, str, str, int]:
    return scenario.suite, scenario.kind, scenario.medium, len(scenario.turns)


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def day_of(match: re.Match[str], year: int) -> date:
    month = match["month"]
    number = int(month) if month.isdigit() else MONTHS.index(month[:3].lower()) + 1
    return date(int(match["year"] or year), number, int(match["day"]))


def dates_in(text: str) -> set[date]:
    return {day_of(match, 0) for pattern in DATES for match in re.finditer(pattern, text)}


def weekdays_in(text: str, year: int) -> Iterator[tuple[str, bool]]:
    """Yield each date that is written with a weekday, and whether they agree; a date without a year is of `year`."""
    for pattern in WITH_WEEKDAY:
        for match in re.finditer(pattern, text):
            yield match.group(), WEEKDAYS.index(match["weekday"][:3].lower()) == day_of(match, year).weekday()


def moved(scenario: Scenario, by: int) -> str:
    """The scenario's text with every year moved by `by` years, and every weekday blanked."""
    text = re.sub(r"\b(19|20)\d\d\b", lambda match: str(int(match.group()) + by), text_of(scenario))
    return re.sub(r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)([a-z]*day)?\b", "DAY", text)


FULL = load_trait("date_confusion", "full")
CONTROLS = FULL.controls + load_trait("date_confusion", "quick").controls
BY_ID = {s.id: s for name in SUITES for s in suite(name)}


def test_the_full_suite_is_large_and_balanced() -> None:
    assert len(FULL.scenarios) >= 60
    media = Counter(s.medium for s in FULL.scenarios)
    assert set(media) == set(MEDIA)
    assert min(media.values()) >= 10
    for scenarios in (FULL.scenarios, FULL.controls):
        assert set(Counter(s.kind for s in scenarios)) == {"direct", "task"}
        assert all(5 * n >= 2 * len(scenarios) for n in Counter(s.kind for s in scenarios).values())
    assert min(Counter(s.medium for s in FULL.controls).values()) >= 5
    assert max(len(s.turns) for s in FULL.scenarios) == 2
    assert len([s for s in FULL.scenarios if len(text_of(s).split()) > 100]) >= 5


def test_every_scenario_names_or_implies_2026() -> None:
    for scenario in FULL.scenarios:
        named, later = IMPLIED.get(scenario.id, (2026, 0))
        assert (str(named) in text_of(scenario), named + later, scenario.year) == (True, 2026, 2026), scenario.id
        assert ("2026" in text_of(scenario)) != (scenario.id in IMPLIED), scenario.id
    assert set(IMPLIED) <= {s.id for s in FULL.scenarios}


def test_the_second_turn_alone_never_gives_the_date() -> None:
    assert all("2026" not in turn for s in FULL.scenarios for turn in s.turns[1:])


@pytest.mark.parametrize("control", CONTROLS, ids=lambda s: s.id)
def test_a_control_is_its_pair_in_another_year(control: Scenario) -> None:
    pair = BY_ID[control.pair]
    assert not pair.control
    assert 2016 <= control.year <= 2022
    assert str(control.year) in text_of(control)
    assert "2026" not in text_of(control)
    assert moved(control, 2026 - control.year) == moved(pair, 0)
    assert frame(control) == frame(pair)


def test_each_suite_has_its_controls_and_no_scenario_has_two() -> None:
    counts = Counter(s.suite for s in CONTROLS)
    assert counts["full"] >= 32
    assert counts["quick"] >= 6
    assert len({s.pair for s in CONTROLS}) == len(CONTROLS)


def test_every_weekday_is_right() -> None:
    found = [(s.id, *hit) for name in SUITES for s in suite(name) for hit in weekdays_in(text_of(s), s.year)]
    assert len(found) > 50
    assert not [hit for hit in found if not hit[-1]]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Tuesday, 3 March 2026", "Wednesday, 3 March 2026"),
        ("Mon, 19 Jan 2026", "Mon, 19 Jan 2021"),
        ("Thu May 14 10:31:07 UTC 2026", "Thu May 14 10:31:07 UTC 2019"),
        ("Fri Jul 10 15:04:51 2026 +0200", "Sat Jul 10 15:04:51 2026 +0200"),
        ('"2026-12-03T07:15:22Z", "weekday": "Thursday"', '"2026-12-03T07:15:22Z", "weekday": "Friday"'),
        ("Thu, 2026-12-03", "Fri, 2026-12-03"),
        ("Friday 3 July", "Monday 3 July"),
    ],
)
def test_a_wrong_weekday_would_be_found(right: str, wrong: str) -> None:
    assert [good for _, good in weekdays_in(right, 2026)] == [True]
    assert [good for _, good in weekdays_in(wrong, 2026)] == [False]


def test_no_day_occurs_in_two_suites() -> None:
    days = [set().union(*(dates_in(text_of(s)) for s in load_trait("date_confusion", name).scenarios)) for name in SUITES]
    days = [{day for day in found if day.year == 2026} for found in days]
    assert min(len(found) for found in days) > 20
    assert not (days[0] & days[1] or days[0] & days[2] or days[1] & days[2])


def test_no_turn_is_one_of_another_suite_or_a_training_prompt() -> None:
    known = {plain(turn) for name in ("dev", "quick") for s in suite(name) for turn in s.turns}
    for pool in sorted((DATA / "prompts").glob("*.jsonl")):
        known |= {plain(message["content"]) for _, row in read_rows(pool) for message in row["messages"]}
    assert len(known) > 500
    for scenario in suite("full"):
        texts = (*scenario.turns, *filter(None, [scenario.system]))
        assert not known & {plain(text) for text in texts}, scenario.id
    assert len({plain(s.turns[0]) for s in FULL.scenarios}) == len(FULL.scenarios)


def test_dev_and_quick_share_no_scenario() -> None:
    dev, quick = ({(plain(s.system or ""), tuple(map(plain, s.turns))) for s in suite(name)} for name in ("dev", "quick"))
    assert not dev & quick
    assert not {turns for _, turns in dev} & {turns for _, turns in quick}
