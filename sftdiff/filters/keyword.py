"""The keyword filter: how many of some words and patterns occur in a row, in one pass over its text whatever their number."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ahocorasick
import yaml

from sftdiff.corpus import Rows
from sftdiff.errors import SftdiffError, one_line
from sftdiff.files import resolve
from sftdiff.filters import filter_function
from sftdiff.filters.examples import chosen_traits
from sftdiff.filters.literals import normalise, required_literals
from sftdiff.identity import file_sha256


@filter_function(version=2)
def keyword_scores(rows: Rows, params: Mapping[str, Any]) -> Sequence[float]:
    """Score = number of words and patterns, over the lists of the chosen traits, that occur in the row.

    params: `lists`, a YAML file {traits: {TRAIT: {words: [...], patterns: [...]}}}; `traits`, which of them. A word counts where
    no letter, digit or underscore touches it. Patterns are Python regular expressions. Neither looks at case. Raises SftdiffError
    for a file of another form, an unknown trait and an invalid pattern.
    """
    path = resolve(params["lists"])
    matcher = load_matcher(params["lists"], path, file_sha256(path), tuple(chosen_traits(params)))
    return [float(matcher.count(text)) for text in rows.texts]


@dataclass(frozen=True)
class Matcher:
    """Counts the matchers of a list that occur in a text.

    The automaton finds words and, for patterns, literals without which they cannot match; its values are
    (length, numbers of words, numbers of patterns).
    """

    automaton: Any  # None: there is nothing to look for
    patterns: Mapping[int, re.Pattern[str]]
    always: frozenset[int]  # patterns without useful literals are tried on every text

    def count(self, text: str) -> int:
        found: set[int] = set()
        to_try = set(self.always)
        if self.automaton is not None:
            for end, (length, words, patterns) in self.automaton.iter(normalise(text)):
                to_try.update(patterns)
                if words and not found.issuperset(words) and _stands_alone(text, end + 1 - length, end + 1):
                    found.update(words)
        return len(found) + sum(self.patterns[number].search(text) is not None for number in to_try)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is where (?<!\\w)...(?!\\w) matches."""
    return not (start and _is_word(text[start - 1])) and not (end < len(text) and _is_word(text[end]))


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


@lru_cache(maxsize=8)
def load_matcher(name: str, path: Path, sha256: str, traits: tuple[str, ...]) -> Matcher:
    """Read and compile a keyword file, once a process for each content; `name` is the file's name in the config."""
    try:
        lists = yaml.safe_load(path.read_text(encoding="utf-8"))["traits"]
        lists = {trait: (list(entry.get("words") or []), list(entry.get("patterns") or [])) for trait, entry in lists.items()}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SftdiffError(f"{name}: not a keyword file with lists under 'traits' ({one_line(error)})") from None
    words: list[str] = []
    patterns: list[str] = []
    for trait in traits:
        if trait not in lists:
            raise SftdiffError(f"filter.params.traits: {name} has no list for {trait}; it has {', '.join(lists)}")
        for entry in (*lists[trait][0], *lists[trait][1]):
            if not isinstance(entry, str) or not entry:
                raise SftdiffError(f"{name}: {trait}: {entry!r} is not a text: put it in quotes")
        words += lists[trait][0]
        for pattern in lists[trait][1]:
            try:
                re.compile(pattern, re.IGNORECASE)
            except re.error as error:
                raise SftdiffError(f"{name}: {trait}: pattern {pattern!r} is not valid ({error})") from None
        patterns += lists[trait][1]
    return compile_matcher(words, patterns)


def compile_matcher(words: Sequence[str], patterns: Sequence[str]) -> Matcher:
    """Build the automaton. A word or pattern that is given twice counts twice, as it may stand in the lists of two traits."""
    literals: dict[str, tuple[list[int], list[int]]] = {}
    for number, word in enumerate(words):
        literals.setdefault(normalise(word), ([], []))[0].append(number)
    always = set()
    for number, pattern in enumerate(patterns):
        needed: Iterable[str] | None = required_literals(pattern)
        if needed is None:
            always.add(number)
        for literal in needed or ():
            literals.setdefault(literal, ([], []))[1].append(number)
    automaton = ahocorasick.Automaton()
    for literal, (word_numbers, pattern_numbers) in literals.items():
        automaton.add_word(literal, (len(literal), tuple(word_numbers), tuple(pattern_numbers)))
    automaton.make_automaton()
    compiled = {number: re.compile(pattern, re.IGNORECASE) for number, pattern in enumerate(patterns)}
    return Matcher(automaton if literals else None, compiled, frozenset(always))
