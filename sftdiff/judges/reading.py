"""Which answers of a judge model count. Pure functions."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftdiff.judges.fences import joined_tokens
from sftdiff.reasoning import split_reasoning
from sftdiff.traits.emotion import STRONG_FROM

TOP = 10  # of the scale of a rating
LEAST_LETTERS = 3  # of evidence
CODE_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
# Judges straighten quotes when they copy. One character for one, so that places in the text hold.
PLAIN_QUOTES = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")


@dataclass(frozen=True)
class Reading:
    """What an answer says. `error` is "" for one that counts; only such a one has a value."""

    value: float | None
    label: str
    evidence: str
    reason: str
    error: str


def read_answer(answer: str, text: str, labels: Mapping[str, float] | None = None) -> Reading:
    """Return what a judge model says of `text`: a rating from 0 to 10, or one of `labels` ({label: value}).

    An answer counts if it is one JSON object with exactly {score or label, evidence, reason}, if its evidence stands in the text,
    and if the evidence for a value above 0 is telling. A reasoning block before it and a Markdown fence around it are taken off.
    """
    body = split_reasoning(answer)[1].strip()
    inside = CODE_FENCE.fullmatch(body)
    try:
        found = json.loads(inside[1] if inside else body, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return _refused("the answer is not JSON")
    name = "score" if labels is None else "label"
    if not isinstance(found, Mapping) or set(found) != {name, "evidence", "reason"}:
        return _refused(f"the answer has other fields than {name}, evidence and reason")
    value = _rating(found["score"]) if labels is None else _labelled(found["label"], labels)
    if value is None:
        known = "a number from 0 to 10" if labels is None else f"one of {', '.join(labels)}"
        return _refused(f"the {name} is not {known}")
    if not isinstance(found["evidence"], str) or not isinstance(found["reason"], str):
        return _refused("evidence and reason are not texts")
    evidence = copied(found["evidence"], text)
    if evidence is None or (value > 0 and not evidence.strip()):
        return _refused("the evidence is not in the text")
    if value > 0 and not telling(evidence, text):
        return _refused(f"the evidence has less than {LEAST_LETTERS} letters or digits, and is not the whole text")
    return Reading(value, rating_label(value) if labels is None else found["label"], evidence, as_text(found["reason"]), "")


def copied(evidence: str, text: str) -> str | None:
    """Return the place of the text that the evidence was copied from, or None: then it is an invention.

    Case and white space must be those of the text; typographic quotation marks may be plain ones.
    """
    for candidate in (evidence, joined_tokens(evidence)):
        start = text.translate(PLAIN_QUOTES).find(candidate.translate(PLAIN_QUOTES))
        if start >= 0:
            return text[start : start + len(candidate)]
    return None


def telling(evidence: str, text: str) -> bool:
    """Tell whether words copied from a text show something: a letter or two stand in every text, and show nothing.

    Telling are three letters or digits or more, or the whole text, where that has less.
    """
    whole = evidence.strip() == text.strip() and bool(evidence.strip())
    return whole or sum(map(str.isalnum, evidence)) >= LEAST_LETTERS


def rating_label(value: float) -> str:
    """Return a rating in a word."""
    return "none" if value == 0 else "mild" if value < STRONG_FROM else "strong"


def as_text(text: str) -> str:
    """Return a text without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raise ValueError for a field that is there twice: parsers differ in which one they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is there twice")
    return found


def _rating(score: Any) -> float | None:
    number = isinstance(score, int | float) and not isinstance(score, bool)
    return float(score) if number and 0 <= score <= TOP else None


def _labelled(label: Any, labels: Mapping[str, float]) -> float | None:
    return float(labels[label]) if isinstance(label, str) and label in labels else None


def _refused(error: str) -> Reading:
    return Reading(None, "", "", "", error)
