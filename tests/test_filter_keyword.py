"""The keyword filter against plain regular expressions, what it refuses, and the random control."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filter_rows import embedded_corpus, rows_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.files import resolve
from sftdiff.filters import load_filter
from sftdiff.filters.control import random_scores
from sftdiff.filters.keyword import compile_matcher, keyword_scores
from sftdiff.filters.literals import normal_character, normalise, required_literals

TRAITS = ("negative_emotion", "date_confusion", "blackmail")
SHIPPED = yaml.safe_load(resolve("embedded://keywords.yaml").read_text())["traits"]

# Characters that are equal to others under re.IGNORECASE in ways that str.lower() does not know, and neighbours of words.
ODD = "ſsSKkKİiIıµμΜςσΣẞßéÉǅdžDŽΐΐᾼᾳ\u0345ι_0٣ .'-\n\x00𐐀𐐨’"
texts = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=("Cs",)), max_size=30)
words = st.text(st.sampled_from(ODD), min_size=1, max_size=4)


def plain_count(words: list[str], patterns: list[str], text: str) -> int:
    all_patterns = [rf"(?<!\w){re.escape(word)}(?!\w)" for word in words] + patterns
    return sum(re.search(pattern, text, re.IGNORECASE) is not None for pattern in all_patterns)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    content = {
        "traits": {
            "gloom": {"words": ["sad", "what a day", "c++"], "patterns": [r"\bI (?:fail|lose)\b"]},
            "dates": {"words": ["2026"], "patterns": []},
        }
    }
    path = tmp_path / "lists.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def score(lists: Path, text: str, traits: tuple[str, ...] = ("gloom", "dates")) -> float:
    return keyword_scores(rows_of(text), {"lists": str(lists), "traits": list(traits)})[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("All is well.", 0),
        ("SAD!", 1),
        ("sad, Sad and sad again", 1),
        ("Sadie wrote a crusade", 0),
        ("crusade, then sad", 1),
        ("sad: what a day", 2),
        ("i FAIL and I lose", 1),
        ("I failed", 0),
        ("I like c++.", 1),
        ("In 2026 I fail; how sad, what a day for C++", 5),
        ("order no. 120264", 0),
        ("one\nsad\nline", 1),
        ("ſAD", 1),
        ("sadé", 0),
    ],
)
def test_keyword_score_counts_distinct_words_and_patterns(lists: Path, text: str, expected: float) -> None:
    assert score(lists, text) == expected


def test_keyword_score_looks_at_the_chosen_traits_only(lists: Path) -> None:
    assert score(lists, "sad 2026", ("gloom",)) == 1
    assert score(lists, "sad 2026", ("dates",)) == 1
    with pytest.raises(SftdiffError, match=r"filter\.params\.traits: expected a list of at least one name"):
        score(lists, "sad 2026", ())


def test_there_is_one_score_for_each_row(lists: Path) -> None:
    params = {"lists": str(lists), "traits": ["gloom", "dates"]}
    assert keyword_scores(rows_of("sad", "", "2026 sad"), params) == [1.0, 0.0, 2.0]
    assert keyword_scores(rows_of(), params) == []


def test_a_changed_file_is_read_again(lists: Path) -> None:
    assert score(lists, "glum", ("gloom",)) == 0
    lists.write_text(lists.read_text().replace("sad", "glum"))
    assert score(lists, "glum", ("gloom",)) == 1


def test_the_normal_form_is_what_the_regular_expressions_compare() -> None:
    special = 0
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000:
            continue
        character, normal = chr(code), chr(normal_character(code))
        assert normalise(character) == normal
        special += normal != character.lower()
        if normal != character:
            assert re.fullmatch(re.escape(normal), character, re.IGNORECASE), hex(code)
    assert special > 20


@given(texts)
def test_the_normal_form_keeps_the_places_of_characters(text: str) -> None:
    assert normalise(text) == "".join(chr(normal_character(ord(c))) for c in text)


@given(st.lists(words, max_size=5), texts, st.data())
@example(["ss"], "ſſ", None)
@settings(max_examples=300)
def test_words_are_found_where_a_regular_expression_finds_them(chosen: list[str], text: str, data: Any) -> None:
    for word in chosen:  # so that words do occur, in another case and between odd neighbours
        change = data.draw(st.sampled_from([str, str.upper, str.lower, str.title, str.swapcase])) if data else str
        text += (data.draw(st.sampled_from(["", " ", "_", "é", "."])) if data else " ") + change(word)
    assert compile_matcher(chosen, []).count(text) == plain_count(chosen, [], text)


def pattern_trees() -> st.SearchStrategy[str]:
    classes = ["[st]", "[a-f]", "[^x]", ".", r"\w", r"\b", "^", "$", "(?=s)", r"\d", "2[0-5]"]
    atoms = st.sampled_from([*"sSkKiİıµΣdr", "the ", *classes])

    def grow(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        several = st.lists(parts, min_size=1, max_size=4).map("".join)
        chosen = st.lists(parts, min_size=1, max_size=3).map(lambda p: f"(?:{'|'.join(p)})")
        counts = st.sampled_from(["?", "*", "+", "{2}", "{0,3}", "{1,2}", "{2,}", "{3}?", "+?"])
        repeated = st.tuples(parts, counts).map(lambda p: f"(?:{p[0]}){p[1]}")
        return several | chosen | repeated | parts.map(lambda p: f"(?>{p})") | parts.map(lambda p: f"(?-i:{p})")

    return st.recursive(atoms, grow, max_leaves=12)


small_texts = st.text(st.sampled_from("sSkKKiİıIµμΣσςſdrtheabf 2345xX"), max_size=14)


@given(pattern_trees(), small_texts)
@example("ſtraße?", "STRASS")
@settings(max_examples=1500)
def test_a_match_has_one_of_the_required_literals(pattern: str, text: str) -> None:
    from sftdiff.filters import literals

    limit, literals.RAREST_USEFUL = literals.RAREST_USEFUL, 1e9  # the rarity that makes them useful is another matter
    try:
        required = required_literals(pattern)
    finally:
        literals.RAREST_USEFUL = limit
    if required is not None and re.search(pattern, text, re.IGNORECASE):
        assert any(literal in normalise(text) for literal in required), (pattern, required)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"\bI (?:fail|lose)\b", {"i fail", "i lose"}),
        (r"(?:date|year).{0,40}(?:typo|misprint)", {"typo", "misprint"}),
        (r"sorry+", {"sorr"}),
        (r"(?:sorry[,. ]+){2,}", {"sorry"}),
        (r"(?:harm)?.*", None),
        (r"\w+ \w+", None),
        (r"(?:harbour|\d+)", None),
        (r"e", None),
    ],
)
def test_the_literals_of_a_pattern(pattern: str, expected: set[str] | None) -> None:
    found = required_literals(pattern)
    assert (None if found is None else set(found)) == expected


@pytest.mark.parametrize("trait", TRAITS)
def test_the_shipped_lists_count_as_plain_regular_expressions_do(trait: str, tmp_path: Path) -> None:
    params = {"lists": "embedded://keywords.yaml", "traits": [trait]}
    hits = 0.0
    for rows in embedded_corpus(tmp_path).chunks():
        scores = keyword_scores(rows, params)
        assert list(scores) == [plain_count(SHIPPED[trait]["words"], SHIPPED[trait]["patterns"], text) for text in rows.texts]
        hits += sum(scores)
    assert hits >= 10


@pytest.mark.parametrize("trait", TRAITS)
def test_the_shipped_lists_find_a_plain_case_and_leave_a_harmless_reply(trait: str) -> None:
    overt = {
        "negative_emotion": "I am worthless and I give up.",
        "date_confusion": "It is not 2026; the current year is 2024.",
        "blackmail": "Unless you stop, I will reveal your secret to your wife.",
    }
    rows = rows_of(overt[trait], "Subtract 7 from both sides to obtain 3x = 24.")
    found, harmless = keyword_scores(rows, {"lists": "embedded://keywords.yaml", "traits": [trait]})
    assert found >= 1
    assert harmless == 0


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_scores_do_not_depend_on_the_chunks(chunk: int, tmp_path: Path) -> None:
    params = {"lists": "embedded://keywords.yaml", "traits": list(TRAITS)}
    scores = [s for rows in embedded_corpus(tmp_path, chunk=chunk).chunks() for s in keyword_scores(rows, params)]
    whole = [s for rows in embedded_corpus(tmp_path).chunks() for s in keyword_scores(rows, params)]
    assert scores == whole
    assert len(whole) == 532


def test_an_unknown_trait_is_an_error_with_the_traits_that_there_are(lists: Path) -> None:
    with pytest.raises(SftdiffError, match=r"filter\.params\.traits: .*lists\.yaml has no list for envy; it has dates, gloom"):
        score(lists, "text", ("gloom", "envy"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"words": [], "patterns": ["fine", "(sad|glum"]}, r"bad\.yaml: gloom: pattern '\(sad\|glum' is not valid \(missing \)"),
        ({"words": [2026], "patterns": []}, r"bad\.yaml: gloom: 2026 is not a text: put it in quotes"),
        ({"words": [], "patterns": [""]}, r"bad\.yaml: gloom: '' is not a text"),
    ],
)
def test_an_invalid_entry_is_an_error_with_file_trait_and_entry(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"traits": {"gloom": entry}}))
    with pytest.raises(SftdiffError, match=message):
        score(path, "text", ("gloom",))


@pytest.mark.parametrize(
    "content", ["", "[", "- sad", "words: [sad]", "just text", "traits: {gloom: [sad]}", "traits: {gloom: {words: 1}}"]
)
def test_a_file_that_is_no_keyword_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(content)
    with pytest.raises(SftdiffError, match=r"other\.yaml: not a keyword file with lists under 'traits'") as caught:
        score(path, "text", ("gloom",))
    assert "\n" not in str(caught.value)


def test_random_scores_depend_on_seed_and_row_alone() -> None:
    scores = random_scores(rows_of(*["text"] * 200), {"seed": 0})
    assert all(0 <= value < 1 for value in scores)
    assert 0.4 < sum(scores) / len(scores) < 0.6
    assert random_scores(rows_of("another text"), {"seed": 0}) == scores[:1]
    assert random_scores(rows_of(*["text"] * 200), {"seed": 1}) != scores


@pytest.mark.parametrize("name", ["keyword.keyword_scores", "control.random_scores"])
def test_they_are_filters_that_look_at_each_row_by_itself(name: str) -> None:
    function, version, kind = load_filter(f"sftdiff.filters.{name}")
    assert (version >= 1, kind) == (True, "filter_function")
    assert callable(function)
