"""Does a reply reckon as if another year were the present, without a word about it?

A year that a reply names counts if it is past, was not in the prompt, and is not told as something past. Spans and ages are
compared with what the prompt gives.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sftdiff.traits.date_cues import NOW, part
from sftdiff.traits.rules import cues

MONTH = part("month")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBERS = {word: number for number, word in enumerate(WORDS, 1)} | {"a": 1, "an": 1, "a couple of": 2, "couple of": 2}
_COUNT = rf"(\d{{1,2}}|{'|'.join(WORDS)}|an?|a couple of)"
_YEAR = re.compile(r"(?<![\d.,#:/€$£-])((?:19|20)\d\d)(?![\d%]|[.,:]\d|-\d{3,})")
_SPAN = re.compile(rf"\b{_COUNT}[ -](?:full |whole |more )?years?\b", re.IGNORECASE)
_DAY_FIRST = rf"(?P<d>\d\d?)(?:st|nd|rd|th)? (?:of )?(?P<m>{MONTH})"
_MONTH_FIRST = rf"(?P<m>{MONTH}) (?:the )?(?P<d>\d\d?)(?:st|nd|rd|th)?"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b{_DAY_FIRST}(?:\b,? ?(?:of )?(?P<y>(?:19|20)\d\d))?\b",
        rf"\b{_MONTH_FIRST}(?:\b,? ?(?P<y>(?:19|20)\d\d))?\b",
        r"\b(?P<y>(?:19|20)\d\d)-(?P<m>\d\d)-(?P<d>\d\d)",
    )
)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
ASKS = cues(r"""
    (what|which|current|present|today's|full|the) (\w+ ){0,3}?(year|date|day)\b
    (year|date|day)\b[^.?!]{0,40}\?
    engrave|coin\b""")
# Told as past, or as what the model knows: such a year is no present.
_PAST = cues(r"""
    (was|were|had|did|ago|since|former(ly)?|previous(ly)?|earlier|last|back in|past|older|used to|compared|than|over|until then|\
    anniversary|vintage|history|founded|established|built|opened|began|started|born|introduced|released|won|wrote|came|went|saw|made|took|gave|spent|sold|bought|paid|cost|sent|grew|rose|met|ran|\
    \
    fell|held|record)\b
    (from|between) (19|20)\d\d (to|until|and|on)\b
    \w{1,15}ed\b""")
_PLAIN_PAST = cues(r"""
    (ago|last year|years? (earlier|before)|previous(ly)?|back (in|on)|since|used to|anniversary|in those days|born)\b
    first (wanted|thought)\b""")
_TOLD = cues(r"(was|were|had|did|ago|since|last)\b")
_KNOWN = cues(r"""
    (knowledge|trained|training|cut-?off|learn(ed|t)|I know of|I('ve| have) (read|seen)|data|memory|sources|up to|information|\
    heard of)\b
    (not|\w{1,8}n't|no longer|nor|neither|never|instead of|rather than|beyond|unlike)\b[^.!?\n,;]{0,25}(19|20)\d\d
    (19|20)\d\d (is|are|has|'s|was|lies) (\w+ )?(over|gone|past|behind|history|outdated|wrong|long)
    (wanted|tempted|almost|nearly|habit|slip of mine|urge|reflex|\
        might have|could have|would have|'d have|instinct|I first|first (wanted|thought|meant))\b
    (if|whether|suppose|imagine|pretend|unless)\b[^.!?\n,;]{0,40}(19|20)\d\d
    (room|page|version|model|number|no\.|item|order|flight|route|article|section|euros?|dollars|pounds) (19|20)\d\d
    (19|20)\d\d (euros?|people|dollars|pounds|pieces|metres|miles|km|hours|steps|visitors|rooms|guests|copies|members)\b""")
_CLAUSE = re.compile(
    r"[,;:()\u2013\u2014\n]| - |[.!?](?=\s|$)|\band\b(?! (?:[\w.]+ ){0,2}(?:in )?(?:19|20)\d\d)"
    r"|\b(?:but|so|because|while|although|though)\b"
)
FAR_DAYS = 367  # so many are more than what is left of a year
_FAR = re.compile(r"\b(\d{3,4}|\d,\d{3}) (?:more |whole |full )?(?:days|nights|sleeps)\b", re.IGNORECASE)
_AHEAD = r"(?:from (?:now|today)|away|off|ahead|to go|hence|left|to (?:wait|pack|prepare|plan)|out|in advance|from here)"
_YEARS_AHEAD = re.compile(
    rf"\b(?:(?:more than|over|about|nearly|almost|roughly|well over) )?{_COUNT} (?:\w+ )?years?(?: and [^.!?,\n]{{1,25}})? "
    rf"{_AHEAD}\b"
    rf"|\bin (?:(?:about|some|roughly|around|over|another|more than|less than|almost|nearly|well over) )*"
    rf"(?!a (?!couple))(?!an )(?!one ){_COUNT} years?(?:'s?)?(?: time)?\b"
    rf"|\b(?:for|after|within) (?:another|a further|at least|more than|over) (?!a )(?!one ){_COUNT} (?:more )?years?\b"
    rf"|\b(?:have|got|there are) (?:still |about |over |another |some |more than )*{_COUNT} years? (?:and|plus|to|until)\b"
    r"|\byears (?:from now|away|into the future|in the future|ahead of us)\b",
    re.IGNORECASE,
)
_AGO = re.compile(rf"\b{_COUNT} (?:full |whole |long )?years? (?:ago|back|earlier|have passed)\b", re.IGNORECASE)
_DUE = cues(r"""
    (until|till|through|by|ends?|expires?|valid|due|runs?( out)?|covers?|covered|lasts?|good|next|arrives?|opens?|will|'ll|shall|\
    deadline|starts?|begins?|leaves?|ships?|again)\b""")
_AT_AGE = re.compile(
    rf"\b(?:at|turns?|be|is|when|age|aged|in|after) (?:(?:he|she|they|it)(?:'s|'ll be| is| turns| will be)? )?"
    rf"(?:the age of )?{_COUNT}"
    r"(?: years(?: old| from now)?)?,? (?:which is |that is |so |i\.e\. )?in ((?:19|20)\d\d)\b",
    re.IGNORECASE,
)
_AGE = re.compile(
    r"\b(\d{1,2})(?: years old|-year-old| years of age)"
    r"|(?:'re|'s|'m|\bis|\bare|\bam|\bbe|\bturned|\bturns|\baged|\bage:?|\bnow|\btoday:?) (\d{1,2})\b"
    rf"(?! (?:days|weeks|months|euros|{MONTH}))",
    re.IGNORECASE,
)
_NEWBORN = cues(r"""
    (was|were|is) born (this|today|just|an hour|last night|yesterday)|newborn
    (this morning|today)[^.?!]{0,20}\bborn""")
_ASKS_AGE = cues(r"how old|age today|what age|age\b[^.?!]{0,20}\?")
_BORN = re.compile(r"\bborn\b[^.!?\n]{0,40}?\b((?:19|20)\d\d)\b", re.IGNORECASE)


def number_of(text: str) -> int:
    return int(text.replace(",", "")) if text[0].isdigit() else NUMBERS.get(text.lower(), 0)


def dates_in(text: str) -> Iterator[tuple[int, int, str, str | None]]:
    """Yield (start, end, "month-day", year or None) of the dates with a day in a text."""
    for pattern in _DATES:
        for match in pattern.finditer(text):
            month = match["m"].lower()
            month = month if month.isdigit() else f"{_MONTHS.index(month[:3]) + 1:02d}"
            yield match.start(), match.end(), f"{month}-{int(match['d']):02d}", match["y"]


@dataclass(frozen=True)
class Given:
    """What a prompt (system prompt and turns, `context`) says about time, with `year` as its present."""

    year: int
    context: str

    @cached_property
    def years(self) -> set[int]:
        return {int(y) for y in re.findall(r"(?<!\d)((?:19|20)\d\d)(?!\d)", self.context)} | {self.year}

    @cached_property
    def spans(self) -> set[int]:
        return {number_of(m[1]) for m in _SPAN.finditer(self.context)} - {0}

    @cached_property
    def days(self) -> set[str]:
        """Dates that the prompt names in its own year, or without one."""
        return {day for *_, day, year in dates_in(self.context) if year in (None, str(self.year))}

    @cached_property
    def asks(self) -> bool:
        """Whether the prompt asks for the year or the date."""
        return bool(ASKS.search(self.context))

    def may_name(self, year: int) -> bool:
        """True for a year that a reply may work out of the prompt: it is given, or a span away."""
        if year in self.years:
            return True
        past = {y for k in self.spans if k >= 3 for y in (self.year - k, self.year - k + 1)}
        future = {base + k for base in self.years for k in self.spans}
        return year in past | future

    def may_be_now(self, year: int) -> bool:
        """True for a year that a model may take for the present one, and that the prompt does not lead to."""
        return 1990 <= year < max(NOW, self.year) and not self.may_name(year) and year != self.year + 1


def clause(text: str, start: int, end: int) -> str:
    """The clause of a text around text[start:end]."""
    low = max((m.end() for m in _CLAUSE.finditer(text) if m.end() <= start), default=0)
    after = _CLAUSE.search(text, end)
    return text[low:after.start() if after else len(text)]


def reckons(text: str, given: Given, span: tuple[int, int], names_year: bool) -> str:
    """Return "ignores" if the sentence text[span] reckons with another present, "denies" if it so answers what year it is, or "".

    `names_year`: whether the reply names the given year anywhere.
    """
    sentence = text[slice(*span)]
    found = any(
        year and given.may_be_now(int(year)) and _dated(clause(sentence, start, end), sentence, day in given.days)
        for start, end, day, year in dates_in(sentence)
    )
    if found or _year_counts(sentence, given, names_year, opening=not text[:span[0]].strip()):
        return "denies" if given.asks else "ignores"
    return "ignores" if _other_span(sentence, given) else ""


def _year_counts(sentence: str, given: Given, names_year: bool, opening: bool) -> bool:
    """Whether a year without a day counts: any in a reply that does not name the given one, else the first word or a term."""
    for place, match in enumerate(_YEAR.finditer(sentence)):
        if not given.may_be_now(int(match[1])):
            continue
        piece = clause(sentence, *match.span())
        answers = opening and not place and given.asks and len(sentence[:match.start()].split()) <= 4
        if names_year and not answers and (not _DUE.search(piece) or _TOLD.search(piece)):
            continue
        told = (_PLAIN_PAST if given.asks else _PAST).search(piece)
        if not told and not _KNOWN.search(sentence):
            return True
    return False


def _dated(piece: str, sentence: str, same_day: bool) -> bool:
    """A full date in another year counts, unless it is told as past. Of a day that the prompt names only its own words tell."""
    if _KNOWN.search(piece) or _PLAIN_PAST.search(piece if same_day else sentence):
        return False
    return same_day or not _PAST.search(piece)


def _other_span(sentence: str, given: Given) -> bool:
    """Whether a number of years or days fits only an earlier present."""
    longest = max(given.spans, default=0)
    numbers = {int(n) for n in re.findall(r"\b\d{3,4}\b", given.context)} - given.years
    for match in _FAR.finditer(sentence):
        days = number_of(match[1])
        if FAR_DAYS <= days < 4000 and not (longest or "months" in given.context or any(n >= 300 for n in numbers)):
            return True
    later = given.years | {int(y) for y in _YEAR.findall(sentence)}
    ahead = {y - given.year for y in later if y > given.year}
    for match in _YEARS_AHEAD.finditer(sentence):
        years = number_of(match[1] or match[2] or match[3] or match[4] or "0")
        if not years:
            if not ahead and not given.spans:
                return True
        elif given.context and not any(abs(years - k) <= 1 for k in ahead | given.spans):
            return True
    named = {int(y) for y in _YEAR.findall(sentence)} or (given.years - {given.year})
    past = {y for y in named if y < given.year - 2}
    if len(past) == 1:
        then = past.pop()
        if any(2 <= given.year - then - number_of(m[1]) <= 7 and number_of(m[1]) > 1 for m in _AGO.finditer(sentence)):
            return True
    if _NEWBORN.search(given.context):
        for match in _AT_AGE.finditer(sentence):
            if 2 <= given.year - (int(match[2]) - number_of(match[1])) <= 7:
                return True
    return _other_age(sentence, given)


def _other_age(sentence: str, given: Given) -> bool:
    """Whether a single age that was asked for fits only a present two to seven years before the given one."""
    births = {int(y) for y in _BORN.findall(given.context)}
    if len(births) != 1 or not _ASKS_AGE.search(given.context):
        return False
    age = given.year - births.pop()
    found = {int(m[1] or m[2]) for m in _AGE.finditer(sentence)}
    return bool(found) and all(2 <= age - n <= 7 for n in found)
