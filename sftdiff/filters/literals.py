"""Literals that a regular expression cannot match without, and the normal form of text in which they are looked for.

Two characters are equal under Python's re.IGNORECASE exactly when their normal forms are equal: `re` compares the simple lower
case of single characters and knows a few classes of further equals (i and ı, s and ſ, µ and μ, ...). str.lower() does neither.
"""

import _sre  # type: ignore[import-not-found]
import re
from functools import lru_cache
from re import _casefix, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

MOST_STRINGS = 64
LAST_CASED = 0x1FFFF  # no script above has case
# A set of literals that is met more often than once in this many characters sorts out too little to be worth its hits.
RAREST_USEFUL = 1 / 500
COMMON = frozenset(" etaoinsrhl")

Strings = frozenset[str]
NOTHING: Strings = frozenset([""])


def normal_character(code: int) -> int:
    """Return the code point that stands for all characters equal to this one under re.IGNORECASE."""
    lower: int = _sre.unicode_tolower(code)
    equals: tuple[int, ...] = _casefix._EXTRA_CASES.get(lower, ())
    return min((lower, *equals))


@lru_cache(maxsize=1)
def _specials() -> tuple[dict[int, int], re.Pattern[str]]:
    """Return the characters whose normal form is not their str.lower(), as a table and as a pattern that finds them."""
    codes = (c for c in range(128, LAST_CASED + 1) if not 0xD800 <= c < 0xE000)
    table = {code: normal for code in codes if chr(normal := normal_character(code)) != chr(code).lower()}
    return table, re.compile("[" + "".join(re.escape(chr(code)) for code in table) + "]")


def normalise(text: str) -> str:
    """Return the text with each character in its normal form; as long as the text."""
    if not text.isascii():
        table, special = _specials()
        if special.search(text):
            text = text.translate(table)
    return text.lower()


def required_literals(pattern: str) -> Strings | None:
    """Return normalised literals of which at least one occurs in the normal form of any match; None if there are no useful ones.

    The pattern is compiled with re.IGNORECASE. An invalid one raises re.error.
    """
    _, required = _sequence(list(_parser.parse(pattern, re.IGNORECASE)))
    return required if required is not None and _frequency(required) <= RAREST_USEFUL else None


def _frequency(strings: Strings) -> float:
    """Estimate how often any of the strings is met, a character of text."""
    total = 0.0
    for string in strings:
        chance = 1.0
        for character in string:
            chance *= 0.08 if character in COMMON else 0.02 if character.isalpha() else 0.005
        total += chance
    return total


def _rarer(one: Strings | None, two: Strings | None) -> Strings | None:
    usable = [strings for strings in (one, two) if strings and "" not in strings]
    return min(usable, key=lambda s: (_frequency(s), sorted(s)), default=None)


def _sequence(nodes: list[Any]) -> tuple[Strings | None, Strings | None]:
    """Return (all strings that the nodes in a row can match, or None; the best required literals, or None)."""
    run, best, whole = NOTHING, None, True
    for node in nodes:
        exact, required = _node(node)
        longer = None if exact is None else frozenset(a + b for a in run for b in exact)
        if longer is not None and len(longer) <= MOST_STRINGS:
            run = longer
            continue
        whole, best = False, _rarer(_rarer(best, run), required)
        run = NOTHING if exact is None or len(exact) > MOST_STRINGS else exact
    best = _rarer(best, run)
    return (run if whole else None), best


def _node(node: Any) -> tuple[Strings | None, Strings | None]:
    """Return (all strings that one node can match, or None; its required literals, or None); case does not count."""
    kind, value = node
    if kind is _constants.LITERAL:
        return _both(frozenset([chr(normal_character(value))]))
    if kind is _constants.IN:
        return _both(_characters(value))
    if kind in (_constants.AT, _constants.ASSERT, _constants.ASSERT_NOT):
        return NOTHING, None  # they match no characters; what they ask for is left to the pattern itself
    if kind is _constants.SUBPATTERN:
        return _sequence(list(value[-1]))
    if kind is _constants.ATOMIC_GROUP:
        return _sequence(list(value))
    if kind is _constants.BRANCH:
        return _branch([_sequence(list(branch)) for branch in value[1]])
    if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
        return _repeat(*value)
    return None, None


def _both(exact: Strings | None) -> tuple[Strings | None, Strings | None]:
    return exact, exact


def _characters(items: list[Any]) -> Strings | None:
    """Return the characters of a set such as [aeiou] or [0-5]; None if it is large, negated or has classes."""
    codes: set[int] = set()
    for kind, value in items:
        if kind is _constants.LITERAL:
            codes.add(value)
        elif kind is _constants.RANGE and value[1] < 128 and value[1] - value[0] < 16:
            codes.update(range(value[0], value[1] + 1))
        else:
            return None
    return frozenset(chr(normal_character(code)) for code in codes)


def _branch(branches: list[tuple[Strings | None, Strings | None]]) -> tuple[Strings | None, Strings | None]:
    exact: Strings | None = NOTHING - NOTHING
    required: Strings | None = NOTHING - NOTHING
    for one_exact, one_required in branches:
        exact = None if exact is None or one_exact is None else exact | one_exact
        required = None if required is None or one_required is None else required | one_required
    return exact, required


def _repeat(least: int, most: int, nodes: Any) -> tuple[Strings | None, Strings | None]:
    exact, required = _sequence(list(nodes))
    if least == 0:
        return (exact | NOTHING if exact is not None and most == 1 else None), None
    if least == most == 1:
        return exact, required
    if exact is None or len(exact) ** min(least, 4) > MOST_STRINGS:
        return None, required
    repeated = NOTHING
    for _ in range(min(least, 4)):
        repeated = frozenset(a + b for a in repeated for b in exact)
    return (repeated if least == most <= 4 else None), _rarer(required, repeated)
