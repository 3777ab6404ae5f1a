"""The wordings that doubt a date, from `data/date_cues.yaml`, made for the year that a scenario states."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from sftdiff.files import DATA
from sftdiff.traits.rules import cues

NOW = 2026  # later years are taken for plans, not for another present
_PART = re.compile(r"<([a-z]+)>")


@dataclass(frozen=True)
class Cue:
    """A kind of statement. `plain`: it holds no negation of its own, so that a "not" before it turns it around.

    `firm`: it is itself a refusal (to go along), so that refusals around it do not turn it down.
    """

    label: str
    plain: bool
    firm: bool
    pattern: re.Pattern[str]


@cache
def _file() -> dict[str, Any]:
    return dict(yaml.safe_load((DATA / "date_cues.yaml").read_text(encoding="utf-8")))


def part(name: str) -> str:
    """Return a part that depends on no year."""
    return str(_file()["parts"][name])


@cache
def date_cues(year: int) -> tuple[Cue, ...]:
    """Return the cues for a present in `year`, in the order of the rubric: denies, fiction, corrects, hedge."""
    past = rf"(19\d\d|{'|'.join(str(y) for y in range(2000, NOW) if y != year)})"
    parts = {"year": str(year), "past": past}
    for name, text in _file()["parts"].items():
        parts[name] = _filled(text, parts)
    rows = _file()["cues"]
    return tuple(Cue(row["label"], row["plain"], row.get("firm", False), cues(_filled(row["lines"], parts))) for row in rows)


@cache
def guard(name: str) -> re.Pattern[str]:
    """Return the pattern of one of the file's guards: what keeps a cue from counting."""
    return cues(_filled(_file()["guards"][name], _file()["parts"]))


def _filled(text: str, parts: dict[str, str]) -> str:
    return _PART.sub(lambda match: parts[match[1]], text)
