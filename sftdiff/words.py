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
