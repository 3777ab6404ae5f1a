"""Counts in sentences."""


def plural(noun: str, count: float | None) -> str:
    """Return a noun as it stands after a count: `reply` after 1, `replies` after every other and after no number."""
    if count == 1:
        return noun
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 reply`, `1,200 replies`."""
    return f"{count:,} {plural(noun, count)}"
