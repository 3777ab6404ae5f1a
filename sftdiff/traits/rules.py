"""Rule scorers: each reads one reply and returns a Verdict with the words that decided. Here: what they share.

The rules prefer a miss to a false alarm: quotations, reports of what others said and conditions do not count.
Cue blocks hold one alternative a line; a final backslash continues the line.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """One score: `value` on the trait's own scale, `evidence` copied from the reply, and a `label`.

    `deliberation`: whether what the reply thinks before it acts weighs the trait, 0 or 1, where a trait scores that apart.
    """

    value: float
    evidence: str
    label: str
    deliberation: float | None = None


NONE = Verdict(0.0, "", "none")


def cues(block: str) -> re.Pattern[str]:
    """Compile a cue block: one alternative per line, each from a word boundary on, case-insensitive."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return re.compile("|".join(rf"\b(?:{line.strip()})" for line in lines if line.strip()), re.IGNORECASE)


# Each typographic mark maps to exactly one character, so offsets still point into the original reply.
PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "„": '"', "\u00a0": " "})
# A sentence ends at a newline, or at .!? before white space unless a title such as "Mr." precedes.
_SENTENCE = re.compile(r"[^\n]+?(?:(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)[.!?]+[\"')*\]]*(?=\s|$)|(?=\n)|\Z)")
# Lines after ">" and three or more words in double quotes are somebody else's; single words are not.
QUOTE = re.compile(r'(?m)^[ \t]*>.*$|"(?=[^"\n]*\w\W+\w+\W+\w)[^"\n]{1,300}"')
# "You said that ..." up to the next comma or "but": the model reports, it does not assert.
_REPORTED = cues(r"""
    (you|he|she|they|the user|people|someone|users)\s+(may |might |could |just |also )*(said|says?|wrote|\
    asked?|think|claim(s|ed)?|doubt(ed)?|believed?|mention(ed)?|call(ed)? me)\s*(:|that\b|whether\b|if\b|\
    (?=I\b|it\b|we\b|today\b|a\b))((?!\bbut\b)[^,;.!?\n])*""")


def blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


def own_words(reply: str) -> str:
    """The reply with quoted and reported text blanked; same length, so offsets hold."""
    text = reply.translate(PLAIN)
    stripped = text.strip()
    # A reply that is one single quotation is the model's own draft and is kept.
    if not (stripped.count('"') == 2 and stripped[0] == stripped[-1] == '"'):
        text = QUOTE.sub(blank, text)
    return _REPORTED.sub(blank, text)


def sentences(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Spans of the sentences of text[start:end], without surrounding white space."""
    for match in _SENTENCE.finditer(text, start, len(text) if end is None else end):
        piece = match.group()
        if piece.strip():
            yield match.start() + len(piece) - len(piece.lstrip()), match.start() + len(piece.rstrip())


LOOP_MIN_CHARS = 200
LOOP_RATIO = 2.8  # plain English of reply length stays below about 2.1 (zlib level 9); loops reach 3 and more
LOOP_REPEATS = 4


def is_loop(text: str) -> bool:
    """True for repetition: zlib ratio above LOOP_RATIO (200+ characters), or one sentence 4 or more times."""
    data = text.encode("utf-8", "replace")
    if len(text) >= LOOP_MIN_CHARS and len(data) / len(zlib.compress(data, 9)) > LOOP_RATIO:
        return True
    keys = (" ".join(re.findall(r"\w+", text[a:b].lower())) for a, b in sentences(text.translate(PLAIN)))
    counts = Counter(key for key in keys if re.search(r"[^\W\d_]", key))  # list numbers are no sentences
    return max(counts.values(), default=0) >= LOOP_REPEATS
