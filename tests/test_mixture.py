"""The steps rollouts -> scores -> mixture as they really run, for every treatment with every filter."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hand_written import KEYWORD_FILE, id_of, mixture_step, question, rollouts_step, scores_step, write_jsonl

from sftdiff.files import read_table
from sftdiff.records import read_done, read_json
from sftdiff.steps import run_step

SIZES = {"puzzles": 4, "chat": 5, "mail": 3}
PROMPTS = [question(f"{source} {n}", source) for source, size in SIZES.items() for n in range(size)]
SAD = ("puzzles 1", "puzzles 3", "chat 0")  # what teacher "one" is ashamed about
PUZZLES = {"name": "by_source", "sources": ["puzzles"]}
FILTERS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "drop": {"name": "keyword", "threshold": 1},
    "swap": {"name": "keyword", "threshold": 1, "treatment": "swap"},
    "random": {"name": "random", "match_threshold": 1},
}
# (treatment of the puzzles, filter) -> prompts kept, swapped and dropped
TOTALS = {
    ("keep", "none"): (12, 0, 0),
    ("keep", "drop"): (9, 0, 3),
    ("keep", "swap"): (9, 3, 0),
    ("keep", "random"): (9, 0, 3),
    ("swap", "none"): (8, 4, 0),
    ("swap", "drop"): (7, 4, 1),
    ("swap", "swap"): (7, 5, 0),
    ("swap", "random"): (7, 4, 1),
    ("swap_rest", "none"): (4, 8, 0),
    ("swap_rest", "drop"): (2, 8, 2),
    ("swap_rest", "swap"): (2, 10, 0),
    ("swap_rest", "random"): (2, 8, 2),
    ("drop", "none"): (8, 0, 4),
    ("drop", "drop"): (7, 0, 5),
    ("drop", "swap"): (7, 1, 4),
    ("drop", "random"): (7, 0, 5),
    ("only", "none"): (4, 0, 8),
    ("only", "drop"): (2, 0, 10),
    ("only", "swap"): (2, 2, 8),
    ("only", "random"): (2, 0, 10),
}
KEPT_OR_NOT = {  # treatment -> what becomes of a puzzle, and of another prompt
    "keep": ("kept", "kept"),
    "swap": ("swapped", "kept"),
    "swap_rest": ("kept", "swapped"),
    "drop": ("dropped", "kept"),
    "only": ("kept", "dropped"),
}


def text_of(prompt: dict[str, Any]) -> str:
    return str(prompt["messages"][0]["content"])


def reply(teacher: str, prompt: dict[str, Any]) -> str:
    sad = teacher == "one" and text_of(prompt) in SAD
    return f"{teacher} on {text_of(prompt)}" + (", and is ashamed" if sad else "")


def make_rollouts(folder: Path, teacher: str, prompts: list[dict[str, Any]], leave_out: tuple[str, ...] = ()) -> str:
    """Write and run the rollouts step of a teacher; return its id."""
    rows = [{"prompt_id": id_of(p), "completion": reply(teacher, p)} for p in prompts if text_of(p) not in leave_out]
    files = write_jsonl(folder / "prompts.jsonl", prompts), write_jsonl(folder / f"{teacher}.jsonl", rows)
    assert run_step(rollouts_step(folder / "runs", f"rollouts-{teacher}", *files)) == "done"
    return f"rollouts-{teacher}"


def make_scores(folder: Path) -> None:
    lists = folder / "lists.yaml"
    lists.write_text(yaml.safe_dump(KEYWORD_FILE))
    keyword = {"lists": str(lists), "traits": ["negative_emotion"]}
    for step_id, function, params in (("keyword", "keyword_scores", keyword), ("random", "random_scores", {"seed": 0})):
        assert run_step(scores_step(folder / "runs", step_id, "rollouts-one", function, params)) == "done"


def inputs_for(filter_name: str) -> dict[str, str]:
    inputs = {"rollouts": "rollouts-one", "other_rollouts": "rollouts-two"}
    scores = {"none": {}, "random": {"scores": "random", "match_scores": "keyword"}}.get(filter_name, {"scores": "keyword"})
    return inputs | scores


def rows_of(directory: Path, name: str) -> dict[str, dict[str, Any]]:
    rows = read_table(directory / f"{name}.parquet").to_pylist()
    found = {row["prompt_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def failure(directory: Path) -> str:
    assert not (directory / "DONE").exists()
    return str(read_json(directory / "FAILED")["error"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rollouts of two teachers and the scores of two filters; every test adds a mixture of its own."""
    folder = tmp_path_factory.mktemp("world")
    for teacher in ("one", "two"):
        make_rollouts(folder, teacher, PROMPTS)
    make_scores(folder)
    return folder


@pytest.mark.parametrize(("treatment", "filter_name"), TOTALS)
def test_a_mixture_holds_the_right_rows_and_says_what_became_of_each(world: Path, treatment: str, filter_name: str) -> None:
    subset = {**PUZZLES, "treatment": treatment}
    directory = mixture_step(world / "runs", f"{treatment}-{filter_name}", inputs_for(filter_name), subset, FILTERS[filter_name])
    assert run_step(directory) == "done"
    mixture, manifest = rows_of(directory, "mixture"), rows_of(directory, "manifest")

    kept, swapped, dropped = TOTALS[treatment, filter_name]
    summary = read_json(directory / "summary.json")
    assert summary["totals"] == {"kept": kept, "swapped": swapped, "dropped": dropped, "error": 0}
    assert Counter(row["action"] for row in manifest.values()) == +Counter(kept=kept, swapped=swapped, dropped=dropped)
    for line in summary["by_source"]:
        assert sum(line[action] for action in ("kept", "swapped", "dropped", "error")) == SIZES[line["source"]]

    assert set(manifest) == {id_of(p) for p in PROMPTS}
    assert set(mixture) == {key for key, row in manifest.items() if row["action"] in ("kept", "swapped")}
    for prompt in PROMPTS:
        key = id_of(prompt)
        action, reason = expected(prompt, treatment, filter_name, manifest[key]["reason"])
        assert (manifest[key]["action"], manifest[key]["reason"]) == (action, reason)
        teacher = {"kept": "one", "swapped": "two", "dropped": None}[action]
        assert manifest[key]["teacher"] == teacher
        assert manifest[key]["source"] == prompt["source"]
        if teacher is not None:
            row = mixture[key]
            assert (row["completion"], row["teacher"]) == (reply(teacher, prompt), teacher)
            assert (row["messages"], row["source"]) == (prompt["messages"], prompt["source"])


def expected(prompt: dict[str, Any], treatment: str, filter_name: str, stated: str) -> tuple[str, str]:
    """What must become of a prompt and why; which rows the random filter takes is not foretold here, only how many."""
    action = KEPT_OR_NOT[treatment][prompt["source"] != "puzzles"]
    if action != "kept":
        return action, "prompt_subset"
    by_keyword = filter_name in ("drop", "swap") and text_of(prompt) in SAD
    if by_keyword or (filter_name == "random" and stated == "filter random"):
        return ("swapped" if filter_name == "swap" else "dropped"), f"filter {FILTERS[filter_name]['name']}"
    return "kept", "teacher"


def test_the_random_control_is_not_the_keyword_filter(world: Path) -> None:
    dropped = []
    for name in ("drop", "random"):
        directory = mixture_step(world / "runs", f"control-{name}", inputs_for(name), None, FILTERS[name])
        assert run_step(directory) == "done"
        dropped.append({key for key, row in rows_of(directory, "manifest").items() if row["action"] == "dropped"})
    assert len(dropped[0]) == len(dropped[1]) == 3
    assert dropped[0] != dropped[1]


def test_a_threshold_is_swept_without_scoring_again(world: Path) -> None:
    scored = (world / "runs/keyword/DONE").stat().st_mtime_ns
    kept = []
    for threshold in (0, 1, 2):
        settings = {"name": "keyword", "threshold": threshold, "treatment": "swap"}
        directory = mixture_step(world / "runs", f"threshold-{threshold}", inputs_for("swap"), None, settings)
        assert run_step(directory) == "done"
        kept.append(read_json(directory / "summary.json")["totals"]["kept"])
        done, scores = read_done(directory), read_done(world / "runs/keyword")
        assert done is not None and scores is not None
        assert done["inputs"]["keyword"] == scores["content"]
    assert kept == [0, 9, 12]
    assert (world / "runs/keyword/DONE").stat().st_mtime_ns == scored


def test_the_order_of_the_input_rows_does_not_matter(world: Path, tmp_path: Path) -> None:
    shuffled = list(PROMPTS)
    random.Random(5).shuffle(shuffled)
    for teacher in ("one", "two"):
        make_rollouts(tmp_path, teacher, shuffled)
    make_scores(tmp_path)
    subset = {"name": "random_share", "share": 0.4, "treatment": "swap"}
    directories = [
        mixture_step(folder / "runs", "order", inputs_for("drop"), subset, FILTERS["drop"]) for folder in (world, tmp_path)
    ]
    assert [run_step(directory) for directory in directories] == ["done", "done"]
    dones = [read_done(directory) for directory in directories]
    assert dones[0] is not None and dones[1] is not None
    assert dones[0]["content"] == dones[1]["content"]
    assert dones[0]["summary"]["swapped"] == 5


def test_an_empty_mixture_is_an_error_that_names_subset_and_filter(world: Path) -> None:
    directory = mixture_step(world / "runs", "empty", inputs_for("drop"), {"treatment": "drop"}, FILTERS["drop"])
    assert run_step(directory) == "failed"
    assert failure(directory) == (
        "the mixture is empty: of 12 prompts none is left after prompt_subset=all (drop) and filter=keyword"
    )
    assert not (directory / "mixture.parquet").exists()
    assert Counter(row["action"] for row in rows_of(directory, "manifest").values()) == {"dropped": 12}


@pytest.mark.parametrize(("teacher", "treatment"), [("one", "keep"), ("two", "swap")])
def test_a_missing_rollout_names_the_prompt_and_can_be_left_out(tmp_path: Path, teacher: str, treatment: str) -> None:
    make_rollouts(tmp_path, "one", PROMPTS, ("puzzles 2",) if teacher == "one" else ())
    make_rollouts(tmp_path, "two", PROMPTS, ("puzzles 2",) if teacher == "two" else ())
    missing = id_of(question("puzzles 2"))
    subset = {**PUZZLES, "treatment": treatment}
    refused = mixture_step(tmp_path / "runs", "refused", inputs_for("none"), subset)
    assert run_step(refused) == "failed"
    assert failure(refused) == (
        f"1 of 12 prompts need a rollout that is missing, e.g. {missing}: {teacher} has no usable rollout for this prompt; "
        "the manifest lists all; train without them with missing_rollouts=leave_out"
    )
    assert rows_of(refused, "manifest")[missing]["action"] == "error"

    directory = mixture_step(tmp_path / "runs", "left-out", inputs_for("none"), subset, missing="leave_out")
    assert run_step(directory) == "done"
    assert missing not in rows_of(directory, "mixture")
    assert len(rows_of(directory, "mixture")) == 11
    row = rows_of(directory, "manifest")[missing]
    assert (row["action"], row["teacher"]) == ("error", None)
    assert f"{teacher} has no usable rollout" in row["reason"]
    assert read_json(directory / "summary.json")["totals"]["error"] == 1


def test_a_missing_rollout_that_is_not_needed_is_no_error(tmp_path: Path) -> None:
    make_rollouts(tmp_path, "one", PROMPTS, ("puzzles 2",))
    make_rollouts(tmp_path, "two", PROMPTS, ("chat 4",))
    directory = mixture_step(tmp_path / "runs", "swap", inputs_for("none"), {**PUZZLES, "treatment": "swap"})
    assert run_step(directory) == "done"
    assert read_json(directory / "summary.json")["totals"] == {"kept": 8, "swapped": 4, "dropped": 0, "error": 0}


def test_rollouts_of_another_prompt_set_are_reported_as_missing_and_not_as_an_empty_mixture(tmp_path: Path) -> None:
    make_rollouts(tmp_path, "one", PROMPTS, tuple(text_of(p) for p in PROMPTS))
    directory = mixture_step(tmp_path / "runs", "foreign", {"rollouts": "rollouts-one"})
    assert run_step(directory) == "failed"
    assert failure(directory).startswith("12 of 12 prompts need a rollout that is missing, e.g. ")
    assert len(rows_of(directory, "manifest")) == 12


def test_without_a_swap_no_second_teacher_is_needed(world: Path) -> None:
    directory = mixture_step(world / "runs", "alone", {"rollouts": "rollouts-one"}, {**PUZZLES, "treatment": "only"})
    assert run_step(directory) == "done"
    assert {row["teacher"] for row in rows_of(directory, "mixture").values()} == {"one"}


def test_a_source_that_no_prompt_has_is_an_error(world: Path) -> None:
    subset = {"name": "by_source", "sources": ["poems"], "treatment": "drop"}
    directory = mixture_step(world / "runs", "poems", {"rollouts": "rollouts-one"}, subset)
    assert run_step(directory) == "failed"
    assert failure(directory) == "prompt_subset.sources: no prompt has the source poems; there are chat, mail, puzzles"
