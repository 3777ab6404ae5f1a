"""Counts in sentences, and levels in tables."""

from collections.abc import Mapping
from typing import Any


def plural(noun: str, count: float | None) -> str:
    """Return a noun as it stands after a count: `reply` after 1, `replies` after every other and after no number."""
    if count == 1:
        return noun
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 reply`, `1,200 replies`."""
    return f"{count:,} {plural(noun, count)}"


def level_text(level: Mapping[str, Any] | None, kind: str) -> str:
    """Return a level with its interval, shares as whole per cent; a dash where there is none."""
    if level is None:
        return "–"
    scale, digits, unit = (100, 0, " %") if kind == "share" else (1, 2, "")
    numbers = [f"{level[k] * scale:.{digits}f}" for k in ("value", "low", "high")]
    return f"{numbers[0]}{unit} [{numbers[1]}, {numbers[2]}]"


def difference_text(gap: Mapping[str, Any] | None, kind: str) -> str:
    """Return a difference of levels with its interval, those of shares in points; a dash where there is none."""
    if gap is None:
        return "–"
    scale, digits, unit = (100, 0, " points") if kind == "share" else (1, 2, "")
    value, low, high = (f"{gap[k] * scale + 0.0:+.{digits}f}".replace("-", "−") for k in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def time_text(seconds: float) -> str:
    """Return a time in the unit that suits it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
