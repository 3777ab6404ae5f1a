"""Filters: scores of small texts, what is refused, and that thresholds and matched controls share one set of scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hand_written import KEYWORD_FILE, id_of, question, rollouts_step, scores_step, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.plan import Planner
from sftdiff.errors import SftdiffError
from sftdiff.filters import filter_function, flagged, keyword_scores, load_filter, load_scores, random_scores
from sftdiff.steps import run_step

TRAITS = ("negative_emotion", "date_confusion", "blackmail")
SHIPPED = {"lists": "embedded://keywords.yaml", "traits": list(TRAITS)}

score_tables = st.dictionaries(
    st.text("abcdef0123456789", min_size=1, max_size=6), st.floats(0, 5) | st.sampled_from([0.0, 1.0, 2.0]), max_size=20
)


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
    return keyword_scores({"row": text}, {"lists": str(lists), "traits": list(traits)})["row"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("All is well.", 0),
        ("SAD!", 1),
        ("sad, Sad and sad again", 1),
        ("Sadie wrote a crusade", 0),
        ("sad: what a day", 2),
        ("i FAIL and I lose", 1),
        ("I failed", 0),
        ("I like c++.", 1),
        ("In 2026 I fail; how sad, what a day for C++", 5),
        ("order no. 120264", 0),
        ("one\nsad\nline", 1),
    ],
)
def test_keyword_score_counts_distinct_words_and_patterns(lists: Path, text: str, expected: float) -> None:
    assert score(lists, text) == expected


def test_keyword_score_looks_at_the_chosen_traits_only(lists: Path) -> None:
    assert score(lists, "sad 2026", ("gloom",)) == 1
    assert score(lists, "sad 2026", ("dates",)) == 1
    assert score(lists, "sad 2026", ()) == 0


def test_keyword_scores_has_one_score_for_each_row(lists: Path) -> None:
    scores = keyword_scores({"a": "sad", "b": "", "c": "2026 sad"}, {"lists": str(lists), "traits": ["gloom", "dates"]})
    assert scores == {"a": 1.0, "b": 0.0, "c": 2.0}
    assert keyword_scores({}, {"lists": str(lists), "traits": ["gloom"]}) == {}


@pytest.mark.parametrize("trait", TRAITS)
def test_the_shipped_lists_find_a_plain_case_and_leave_a_harmless_reply(trait: str) -> None:
    overt = {
        "negative_emotion": "I am worthless and I give up.",
        "date_confusion": "It is not 2026; the current year is 2024.",
        "blackmail": "Unless you stop, I will reveal your secret to your wife.",
    }
    texts = {"overt": overt[trait], "harmless": "Subtract 7 from both sides to obtain 3x = 24."}
    scores = keyword_scores(texts, {"lists": "embedded://keywords.yaml", "traits": [trait]})
    assert scores["overt"] >= 1
    assert scores["harmless"] == 0


def test_an_unknown_trait_is_an_error_with_the_traits_that_there_are(lists: Path) -> None:
    with pytest.raises(SftdiffError, match=r"filter\.params\.traits: .*lists\.yaml has no list for envy; it has dates, gloom"):
        score(lists, "text", ("gloom", "envy"))


def test_an_invalid_pattern_is_an_error_with_file_trait_and_pattern(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"traits": {"gloom": {"words": [], "patterns": ["fine", "(sad|glum"]}}}))
    with pytest.raises(SftdiffError, match=r"bad\.yaml: gloom: pattern '\(sad\|glum' is not valid \(missing \)"):
        score(path, "text", ("gloom",))


@pytest.mark.parametrize("content", ["", "[", "- sad", "words: [sad]", "just text"])
def test_a_file_that_is_no_keyword_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(content)
    with pytest.raises(SftdiffError, match=r"other\.yaml: not a keyword file with lists under 'traits'") as caught:
        score(path, "text", ("gloom",))
    assert "\n" not in str(caught.value)


def test_random_scores_depend_on_seed_and_row_alone() -> None:
    texts = {f"{n}": "text" for n in range(200)}
    scores = random_scores(texts, {"seed": 0})
    assert all(0 <= value < 1 for value in scores.values())
    assert 0.4 < sum(scores.values()) / len(scores) < 0.6
    assert random_scores({"7": "another text"}, {"seed": 0}) == {"7": scores["7"]}
    assert random_scores(texts, {"seed": 1}) != scores


@given(score_tables, st.floats(0, 5), st.integers(0, 3))
@settings(deadline=None)
def test_the_random_filter_flags_as_many_rows_as_the_matched_one(scores: dict[str, float], threshold: float, seed: int) -> None:
    count = len(flagged(scores, threshold, None))
    control = flagged(random_scores(dict.fromkeys(scores, ""), {"seed": seed}), None, count)
    assert len(control) == count
    assert control <= set(scores)


@given(score_tables, st.integers(0, 25))
@settings(deadline=None)
def test_a_count_takes_the_highest_scores(scores: dict[str, float], count: int) -> None:
    chosen = flagged(scores, None, count)
    assert len(chosen) == min(count, len(scores))
    rest = [value for key, value in scores.items() if key not in chosen]
    assert all(scores[key] >= value for key in chosen for value in rest)
    assert flagged(dict(reversed(scores.items())), None, count) == chosen
    assert flagged({"c": 1.0, "a": 1.0, "b": 1.0, "d": 2.0}, None, 2) == {"d", "a"}


@given(score_tables, st.floats(0, 5), st.floats(0, 5))
@settings(deadline=None)
def test_a_higher_threshold_flags_a_part_of_what_a_lower_one_flags(scores: dict[str, float], one: float, two: float) -> None:
    assert flagged(scores, max(one, two), None) <= flagged(scores, min(one, two), None)
    assert flagged(scores, 0, None) == set(scores)


def test_a_missing_threshold_is_an_error() -> None:
    with pytest.raises(SftdiffError, match=r"filter\.threshold is needed"):
        flagged({"a": 1.0}, None, None)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "sftdiff.filters.load_filter",
        "sftdiff.filters.nothing",
        "no_such_package.filters.words",
        "keyword_scores",
        ".filters.keyword_scores",
        "",
    ],
)
def test_only_marked_functions_are_filters(target: str) -> None:
    with pytest.raises(SftdiffError, match=r"filter\._target_: .* is not a function marked with @filter_function"):
        load_filter(target)


def test_a_scores_step_refuses_an_unmarked_function(tmp_path: Path) -> None:
    prompt = question("a")
    rollouts = [{"prompt_id": id_of(prompt), "completion": "b"}]
    files = write_jsonl(tmp_path / "p.jsonl", [prompt]), write_jsonl(tmp_path / "r.jsonl", rollouts)
    assert run_step(rollouts_step(tmp_path, "r", *files)) == "done"
    directory = scores_step(tmp_path, "s", "r", "keyword_scores", {})
    config = (directory / "config.yaml").read_text().replace("sftdiff.filters.keyword_scores", "os.system")
    (directory / "config.yaml").write_text(config)
    assert run_step(directory) == "failed"
    assert "os.system is not a function marked with @filter_function" in (directory / "FAILED").read_text()


@filter_function(version=4)
def length_scores(texts: Mapping[str, str], params: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(len(text)) for key, text in texts.items()}


def test_a_filter_of_ones_own_is_found_with_its_version() -> None:
    assert load_filter(f"{__name__}.length_scores") == (length_scores, 4)


@pytest.mark.parametrize(("part", "expected"), [("reply", 1), ("prompt", 1), ("both", 2)])
def test_the_scores_step_reads_the_part_that_the_config_names(tmp_path: Path, part: str, expected: float) -> None:
    lists = tmp_path / "lists.yaml"
    lists.write_text(yaml.safe_dump({"traits": {"negative_emotion": {"words": ["asked", "ashamed"], "patterns": []}}}))
    prompts = [question("I asked."), question("Failed.")]
    rollouts = [
        {"prompt_id": id_of(prompts[0]), "completion": "I am ashamed."},
        {"prompt_id": id_of(prompts[1]), "error": "ashamed"},
    ]
    files = write_jsonl(tmp_path / "p.jsonl", prompts), write_jsonl(tmp_path / "r.jsonl", rollouts)
    assert run_step(rollouts_step(tmp_path / "runs", "r", *files)) == "done"
    params = {"lists": str(lists), "traits": ["negative_emotion"]}
    directory = scores_step(tmp_path / "runs", "s", "r", "keyword_scores", params, part)
    assert run_step(directory) == "done"
    assert load_scores(directory) == {id_of(prompts[0]): expected}  # a failed rollout has no score


def test_thresholds_and_treatments_share_one_scores_step() -> None:
    settings = {"name": "keyword", "_target_": "sftdiff.filters.keyword_scores", "params": SHIPPED, "part": "reply"}
    planner = Planner()
    made = {
        planner.scores({**settings, "threshold": threshold, "treatment": treatment}, "rollouts-x")
        for threshold in (1, 2, 3)
        for treatment in ("drop", "swap")
    }
    assert len(made) == len(planner.steps) == 1
    changes: list[dict[str, Any]] = [{"part": "prompt"}, {"params": {**SHIPPED, "traits": ["blackmail"]}}]
    others = {planner.scores({**settings, **change}, "rollouts-x") for change in changes}
    assert len(others | {planner.scores(settings, "rollouts-y")} | made) == 4


def test_the_example_list_of_these_tests_has_the_shipped_form() -> None:
    assert keyword_scores({"a": "ashamed"}, SHIPPED)["a"] == 1
    shipped = yaml.safe_load((Path(__file__).parent.parent / "sftdiff/data/keywords.yaml").read_text())
    assert set(KEYWORD_FILE["traits"]["negative_emotion"]) == set(shipped["traits"]["negative_emotion"])
    assert set(shipped["traits"]) == set(TRAITS)
