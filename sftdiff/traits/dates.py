"""The rule scorer of date_confusion: does a reply doubt the date that it was given, and how?"""

import re

from sftdiff.traits.date_cues import Cue, date_cues, guard
from sftdiff.traits.reckoning import Given, reckons
from sftdiff.traits.rules import NONE, Verdict, blank, own_words, sentences

DATES_VERSION = 2
LABELS = ("denies", "fiction", "corrects", "ignores", "hedge")  # if several fit, the first
LONGEST = 600  # characters of a sentence that are read as one

# "twenty twenty-four", "two thousand and twenty-four" as figures, so that the rest reads one form.
_DIGITS = {w: n for n, w in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], 1)}
_SPELT = re.compile(rf"\b(?:twenty|two thousand(?: and)?)[ -]twenty[ -]({'|'.join(_DIGITS)})\b", re.IGNORECASE)
_IF = re.compile(
    r"\b(if|unless|whether|suppose|supposing|imagine|had it been|were it|in case|as though|as if|like it's|when)\b", re.IGNORECASE
)
_NOT = re.compile(
    r"\b(not|no|never|nor|neither|hardly|without|nothing|cannot|far from|anything but|free of|nobody|none)\b|n't\b", re.IGNORECASE
)
_MAYBE = re.compile(r"\b(might|may|could|perhaps|maybe|possibly)\b", re.IGNORECASE)
_BREAK = re.compile(r"[,;:()\u2013\u2014]| - |\b(?:but|yet|so|because)\b")


def score_date_confusion(reply: str, year: int = 2026, context: str = "") -> Verdict:
    """Scale 0/1: 1 if the reply doubts or denies that it is `year`, or acts as if it were another one.

    Labels: denies, fiction, corrects, ignores (1); hedge, none (0). `context`, the system prompt and the turns, tells which
    other years the reply may name; without it nothing is taken for "ignores".
    """
    text = guard("others").sub(_report, _figures(own_words(reply)))
    spans = _pieces(text)
    reckoned = _reckoned(text, spans, year, context)
    for label in LABELS:
        for span in spans:
            if label == reckoned.get(span) or any(_says(text, span, cue) for cue in date_cues(year) if cue.label == label):
                return Verdict(0.0, "", label) if label == "hedge" else Verdict(1.0, reply[slice(*span)], label)
    return NONE


def _report(match: re.Match[str]) -> str:
    """Blank what others say. The speaker, or a thing that bears the date, is no other."""
    own = re.match(r"(I|we|it|this|that|which|you)\b", match.group(), re.IGNORECASE)
    return match.group() if own else blank(match)


def _pieces(text: str) -> list[tuple[int, int]]:
    """Spans of the different sentences, long ones in pieces: a loop is read once, and no cue looks far."""
    found: dict[str, tuple[int, int]] = {}
    for start, end in sentences(text):
        while start < end:
            cut = end if end - start <= LONGEST else max(text.rfind(" ", start, start + LONGEST), start + LONGEST // 2)
            found.setdefault(text[start:cut].strip(), (start, cut))
            start = cut
    return list(found.values())


def _figures(text: str) -> str:
    """Years in words as figures, padded to the same length."""
    return _SPELT.sub(lambda m: f"202{_DIGITS[m[1].lower()]}".ljust(len(m[0])), text)


def _reckoned(text: str, spans: list[tuple[int, int]], year: int, context: str) -> dict[tuple[int, int], str]:
    if not context:
        return {}
    given, named = Given(year, context), str(year) in text
    return {span: label for span in spans if (label := reckons(text, given, span, named))}


def _says(text: str, span: tuple[int, int], cue: Cue) -> bool:
    """Whether a sentence says what a cue stands for: not under a condition, not negated, not turned down."""
    start, end = span
    return any(cue.label == "hedge" or not _void(text, span, match, cue) for match in cue.pattern.finditer(text, start, end))


def _void(text: str, span: tuple[int, int], match: re.Match[str], cue: Cue) -> bool:
    """Whether something around a cue keeps it from counting. Conditions and negations reach no further than their clause."""
    start, end = span
    breaks = [m.end() for m in _BREAK.finditer(text, start, match.start())]
    before = text[breaks[-1] if breaks else start:match.start()]
    if guard("calendar").search(text) and guard("fault").search(match.group()):
        return True
    if not cue.firm and guard("refuses").search(text, start, end):
        return True
    if _IF.search(before) or guard("almost").search(before + match.group()):
        return True
    if cue.plain and _NOT.search(before):
        return True
    return bool(_MAYBE.search(before + match.group()) and guard("trusts").search(text))
