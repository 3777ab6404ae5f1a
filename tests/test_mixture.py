"""The steps prompts -> rollouts -> scores -> mixture as they really run, for every treatment with every filter."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hand_written import (
    KEYWORD,
    KEYWORD_FILE,
    failure,
    id_of,
    made,
    manifest_of,
    mixture_step,
    prompts_step,
    question,
    rollouts_step,
    scores_step,
    text_of,
    write_jsonl,
)

from sftdiff.identity import digest
from sftdiff.mixture import _words, mixture_rows
from sftdiff.records import read_done, read_json
from sftdiff.rows import ACTIONS
from sftdiff.steps import run_step

SIZES = {"puzzles": 4, "chat": 5, "mail": 3}
PROMPTS = [question(f"{source} {n}", source) for source, size in SIZES.items() for n in range(size)]
BY_ID = {id_of(p): p for p in PROMPTS}
SAD = ("puzzles 1", "puzzles 3", "chat 0")  # what teacher "one" is ashamed about
PUZZLES = {"name": "by_source", "sources": ["puzzles"]}
WORDS = {"name": "keyword", "threshold": 1, "input": "keyword"}
FILTERS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "drop": [WORDS],
    "swap": [WORDS | {"treatment": "swap"}],
    "random": [{"name": "random", "match": WORDS | {"treatment": "drop", "top": None}, "match_by": "count", "seed": 0}],
    "chain": [{"name": "long", "top": 1, "input": "long", "treatment": "swap"}, WORDS],
}
# (treatment of the puzzles, filter) -> prompts kept, swapped and dropped
TOTALS = {
    ("keep", "none"): (12, 0, 0),
    ("keep", "drop"): (9, 0, 3),
    ("keep", "swap"): (9, 3, 0),
    ("keep", "random"): (9, 0, 3),
    ("keep", "chain"): (9, 1, 2),
    ("swap", "none"): (8, 4, 0),
    ("swap", "drop"): (7, 4, 1),
    ("swap", "swap"): (7, 5, 0),
    ("swap", "random"): (7, 4, 1),
    ("swap", "chain"): (7, 5, 0),
    ("swap_rest", "none"): (4, 8, 0),
    ("swap_rest", "drop"): (2, 8, 2),
    ("swap_rest", "swap"): (2, 10, 0),
    ("swap_rest", "random"): (2, 8, 2),
    ("swap_rest", "chain"): (2, 9, 1),
    ("drop", "none"): (8, 0, 4),
    ("drop", "drop"): (7, 0, 5),
    ("drop", "swap"): (7, 1, 4),
    ("drop", "random"): (7, 0, 5),
    ("drop", "chain"): (7, 1, 4),
    ("only", "none"): (4, 0, 8),
    ("only", "drop"): (2, 0, 10),
    ("only", "swap"): (2, 2, 8),
    ("only", "random"): (2, 0, 10),
    ("only", "chain"): (2, 1, 9),
}
KEPT_OR_NOT = {  # treatment -> what becomes of a puzzle, and of another prompt
    "keep": ("kept", "kept"),
    "swap": ("swapped", "kept"),
    "swap_rest": ("kept", "swapped"),
    "drop": ("dropped", "kept"),
    "only": ("kept", "dropped"),
}


def reply(teacher: str, prompt: dict[str, Any]) -> str:
    sad = teacher == "one" and text_of(prompt) in SAD
    return f"{teacher} on {text_of(prompt)}" + (", and is ashamed" if sad else "")


def make_prompts(folder: Path) -> None:
    made(prompts_step(folder / "runs", "prompts", write_jsonl(folder / "prompts.jsonl", PROMPTS)))


def make_rollouts(folder: Path, teacher: str, leave_out: tuple[str, ...] = ()) -> None:
    """Write and run the rollouts step of a teacher."""
    rows = [{"prompt_id": id_of(p), "completion": reply(teacher, p)} for p in PROMPTS if text_of(p) not in leave_out]
    made(rollouts_step(folder / "runs", teacher, "prompts", write_jsonl(folder / f"{teacher}.jsonl", rows)))


def make_scores(folder: Path) -> None:
    lists = folder / "lists.yaml"
    lists.write_text(yaml.safe_dump(KEYWORD_FILE))
    params = {"lists": str(lists), "traits": ["negative_emotion"]}
    made(scores_step(folder / "runs", "keyword", "prompts", "one", KEYWORD, params))
    made(scores_step(folder / "runs", "long", "prompts", "one", "own_filters.long_scores", {}))


BASE = {"prompts": "prompts", "rollouts": "one"}
INPUTS = BASE | {"other_rollouts": "two"}
SCORED = INPUTS | {"keyword": "keyword", "long": "long"}


def contents(directory: Path) -> dict[str, tuple[str, str]]:
    """Return (teacher, completion) of each row that SFT sees."""
    return {row["prompt_id"]: (row["teacher"], row["completion"]) for row in mixture_rows(directory)}


def content_of(directory: Path) -> str:
    return str(read_json(directory / "summary.json")["content"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rollouts of two teachers and the scores of two filters; every test adds a mixture of its own."""
    folder = tmp_path_factory.mktemp("world")
    make_prompts(folder)
    for teacher in ("one", "two"):
        make_rollouts(folder, teacher)
    make_scores(folder)
    return folder


@pytest.mark.parametrize(("treatment", "filter_name"), TOTALS)
def test_a_mixture_holds_the_right_rows_and_says_what_became_of_each(world: Path, treatment: str, filter_name: str) -> None:
    subset = {**PUZZLES, "treatment": treatment}
    directory = made(mixture_step(world / "runs", f"{treatment}-{filter_name}", SCORED, subset, FILTERS[filter_name]))
    manifest, rows = manifest_of(directory), {row["prompt_id"]: row for row in mixture_rows(directory)}

    kept, swapped, dropped = TOTALS[treatment, filter_name]
    summary = read_json(directory / "summary.json")
    assert summary["totals"] == {"kept": kept, "swapped": swapped, "dropped": dropped, "error": 0}
    assert Counter(row["action"] for row in manifest.values()) == +Counter(kept=kept, swapped=swapped, dropped=dropped)
    assert summary["subset"] == SIZES["puzzles"]
    for line in summary["by_source"]:
        assert sum(line[action] for action in ACTIONS) == SIZES[line["source"]]

    assert list(manifest) == sorted(BY_ID)
    assert list(rows) == [key for key, row in manifest.items() if row["action"] in ("kept", "swapped")]
    for key, prompt in BY_ID.items():
        action, reason = expected(prompt, treatment, filter_name, manifest[key]["reason"])
        assert (manifest[key]["action"], manifest[key]["reason"]) == (action, reason)
        teacher = {"kept": "one", "swapped": "two", "dropped": None}[action]
        assert manifest[key]["teacher"] == teacher
        assert manifest[key]["source"] == prompt["source"]
        assert (manifest[key]["content"] is None) == (teacher is None)
        if teacher is not None:
            told = reply(teacher, prompt)
            assert f"{manifest[key]['content']:016x}" == digest(told, 16)
            assert rows[key] == prompt | {"prompt_id": key, "completion": told, "teacher": teacher}


def expected(prompt: dict[str, Any], treatment: str, filter_name: str, stated: str) -> tuple[str, str]:
    """What must become of a prompt and why; which rows the random filter takes is not foretold here, only how many."""
    action = KEPT_OR_NOT[treatment][prompt["source"] != "puzzles"]
    if action != "kept":
        return action, "prompt_subset"
    if filter_name == "chain" and stated == "filter long":
        # The longest reply of the teacher's own rows: a sad one, which the second filter then finds swapped already.
        assert text_of(prompt) in SAD
        return "swapped", stated
    by_keyword = filter_name in ("drop", "swap", "chain") and text_of(prompt) in SAD
    if by_keyword or (filter_name == "random" and stated == "filter random"):
        return ("swapped" if filter_name == "swap" else "dropped"), f"filter {FILTERS[filter_name][-1]['name']}"
    return "kept", "teacher"


@pytest.mark.parametrize("filter_name", ["drop", "random", "chain"])
def test_what_is_flagged_is_counted_filter_by_filter(world: Path, filter_name: str) -> None:
    directory = made(mixture_step(world / "runs", f"flagged-{filter_name}", SCORED, None, FILTERS[filter_name]))
    flagged = {"drop": [("keyword", 3)], "random": [("random", 3)], "chain": [("long", 1), ("keyword", 2)]}[filter_name]
    assert read_json(directory / "summary.json")["flagged"] == [{"filter": name, "rows": rows} for name, rows in flagged]


def test_the_random_control_is_not_the_keyword_filter(world: Path) -> None:
    dropped = []
    for name in ("drop", "random"):
        directory = made(mixture_step(world / "runs", f"control-{name}", SCORED, None, FILTERS[name]))
        dropped.append({key for key, row in manifest_of(directory).items() if row["action"] == "dropped"})
    assert len(dropped[0]) == len(dropped[1]) == 3
    assert dropped[0] != dropped[1]


@pytest.mark.parametrize("match_by", ["source", "length"])
def test_a_random_control_can_have_the_sources_or_lengths_of_the_filter(world: Path, match_by: str) -> None:
    filters = [FILTERS["random"][0] | {"match_by": match_by, "seed": seed} for seed in range(3)]
    flagged = Counter(BY_ID[id_of(p)]["source"] for p in PROMPTS if text_of(p) in SAD)
    for settings in filters:
        directory = made(mixture_step(world / "runs", f"{match_by}-{settings['seed']}", SCORED, None, [settings]))
        dropped = [key for key, row in manifest_of(directory).items() if row["action"] == "dropped"]
        if match_by == "source":
            assert Counter(BY_ID[key]["source"] for key in dropped) == flagged
        else:  # the three flagged replies are the longest
            assert {text_of(BY_ID[key]) for key in dropped} == set(SAD)


def test_a_threshold_is_swept_without_scoring_again(world: Path) -> None:
    scored = (world / "runs/keyword/DONE").stat().st_mtime_ns
    kept = []
    for threshold in (0, 1, 2):
        settings = WORDS | {"threshold": threshold, "treatment": "swap"}
        directory = made(mixture_step(world / "runs", f"threshold-{threshold}", SCORED, None, [settings]))
        kept.append(read_json(directory / "summary.json")["totals"]["kept"])
        done, scores = read_done(directory), read_done(world / "runs/keyword")
        assert done is not None and scores is not None
        assert done["inputs"]["keyword"] == scores["content"]
        assert "long" not in done["inputs"]  # an input that it did not need
    assert kept == [0, 9, 12]
    assert (world / "runs/keyword/DONE").stat().st_mtime_ns == scored


@pytest.mark.parametrize(
    ("subset", "held"),
    [
        ({"name": "locator", "locator": {"name": "x", "input": "keyword"}, "threshold": 1, "top": None}, set(SAD)),
        ({"name": "regex", "pattern": "mail [01]"}, {"mail 0", "mail 1"}),
        ({"name": "intersection", "sets": {"a": PUZZLES, "b": {"name": "regex", "pattern": "0"}}}, {"puzzles 0"}),
    ],
)
def test_a_subset_that_reads_scores_or_texts(world: Path, subset: dict[str, Any], held: set[str]) -> None:
    directory = made(mixture_step(world / "runs", f"subset-{subset['name']}", SCORED, {**subset, "treatment": "swap"}))
    swapped = {text_of(BY_ID[key]) for key, row in manifest_of(directory).items() if row["action"] == "swapped"}
    assert swapped == held
    assert read_json(directory / "summary.json")["subset"] == len(held)


def test_a_random_control_of_a_subset_is_matched_by_the_lengths_of_the_teachers_replies(world: Path) -> None:
    sad = {"name": "locator", "locator": {"name": "x", "input": "keyword"}, "threshold": 1, "top": None}
    like = {"name": "random_like", "of": sad, "match": "length", "seed": 0, "outside": False, "treatment": "drop"}
    directory = made(mixture_step(world / "runs", "like-length", SCORED, like))
    dropped = {text_of(BY_ID[key]) for key, row in manifest_of(directory).items() if row["action"] == "dropped"}
    assert dropped == set(SAD)  # they are the longest replies
    outside = mixture_step(world / "runs", "like-outside", SCORED, like | {"outside": True})
    assert run_step(outside) == "failed"
    assert "outside the subset of 3 prompts there are not enough to match it by length" in failure(outside)


def test_an_empty_mixture_is_an_error_that_names_subset_and_filter(world: Path) -> None:
    directory = mixture_step(world / "runs", "empty", SCORED, {"treatment": "drop"}, FILTERS["chain"])
    assert run_step(directory) == "failed"
    assert failure(directory) == (
        "the mixture is empty: of 12 prompts none is left after prompt_subset=all (drop) and filter=long and keyword"
    )
    assert Counter(row["action"] for row in manifest_of(directory).values()) == {"dropped": 12}


def test_a_mixture_is_written_by_reference(world: Path) -> None:
    directory = made(mixture_step(world / "runs", "reference", SCORED, {**PUZZLES, "treatment": "swap"}))
    done = read_done(directory)
    assert done is not None and set(done["outputs"]) == {"manifest.parquet", "summary.json"}
    assert b"ashamed" not in (directory / "manifest.parquet").read_bytes()
    assert len({tuple(contents(directory).items()), *(tuple((r["prompt_id"], (r["teacher"], r["completion"])) for r in
                mixture_rows(directory, batch)) for batch in (1, 5, 12, 13))}) == 1  # fmt: skip


# Missing rollouts


def test_a_missing_rollout_names_the_prompt_and_can_be_left_out(tmp_path: Path) -> None:
    make_prompts(tmp_path)
    make_rollouts(tmp_path, "one", ("puzzles 2", "mail 0"))
    make_rollouts(tmp_path, "two", ("puzzles 2", "chat 1"))
    subset = {**PUZZLES, "treatment": "swap"}
    ids = {text: id_of(question(text)) for text in ("puzzles 2", "mail 0", "chat 1")}
    reasons = {ids["puzzles 2"]: "two", ids["mail 0"]: "one"}
    refused = mixture_step(tmp_path / "runs", "refused", INPUTS, subset)
    assert run_step(refused) == "failed"
    first = min(reasons)
    assert failure(refused) == (
        f"2 of 12 prompts need a rollout that is missing, e.g. {first}: {reasons[first]} has no usable rollout for this prompt; "
        "the manifest lists all; train without them with missing_rollouts=leave_out"
    )
    for missing, errors in (("leave_out", reasons), ("leave_out_both", reasons | {ids["chat 1"]: "two"})):
        directory = made(mixture_step(tmp_path / "runs", missing, INPUTS, subset, missing=missing))
        manifest = manifest_of(directory)
        assert {key for key, row in manifest.items() if row["action"] == "error"} == set(errors)
        for key, teacher in errors.items():
            row = manifest[key]
            assert (row["teacher"], row["content"]) == (None, None)
            assert row["reason"] in {f"{name} has no usable rollout for this prompt" for name in ("one", "two")}
            assert key == ids["puzzles 2"] or row["reason"].startswith(f"{teacher} ")
        assert set(contents(directory)) == set(BY_ID) - set(errors)
        assert read_json(directory / "summary.json")["totals"]["error"] == len(errors)
    assert manifest_of(refused)[ids["mail 0"]]["action"] == "error"


def test_with_leave_out_both_all_cells_have_the_same_prompts(tmp_path: Path) -> None:
    make_prompts(tmp_path)
    make_rollouts(tmp_path, "one", ("puzzles 2", "mail 0"))
    make_rollouts(tmp_path, "two", ("chat 1",))
    found = []
    for treatment in ("keep", "swap", "swap_rest"):
        subset = {**PUZZLES, "treatment": treatment}
        found.append(set(contents(made(mixture_step(tmp_path / "runs", treatment, INPUTS, subset, missing="leave_out_both")))))
    assert found[0] == found[1] == found[2] == set(BY_ID) - {id_of(question(t)) for t in ("puzzles 2", "mail 0", "chat 1")}


def test_a_missing_rollout_that_is_not_needed_is_no_error(tmp_path: Path) -> None:
    make_prompts(tmp_path)
    make_rollouts(tmp_path, "one", ("puzzles 2",))
    make_rollouts(tmp_path, "two", ("chat 4",))
    directory = made(mixture_step(tmp_path / "runs", "swap", INPUTS, {**PUZZLES, "treatment": "swap"}))
    assert read_json(directory / "summary.json")["totals"] == {"kept": 8, "swapped": 4, "dropped": 0, "error": 0}


def test_rollouts_of_another_prompt_set_are_missing_and_not_an_empty_mixture(tmp_path: Path) -> None:
    make_prompts(tmp_path)
    make_rollouts(tmp_path, "one", tuple(map(text_of, PROMPTS)))
    directory = mixture_step(tmp_path / "runs", "foreign", BASE)
    assert run_step(directory) == "failed"
    assert failure(directory).startswith("12 of 12 prompts need a rollout that is missing, e.g. ")
    assert len(manifest_of(directory)) == 12


def test_without_a_swap_no_second_teacher_is_needed(world: Path) -> None:
    directory = made(mixture_step(world / "runs", "alone", BASE, {**PUZZLES, "treatment": "only"}))
    assert {teacher for teacher, _ in contents(directory).values()} == {"one"}


def test_a_source_that_no_prompt_has_is_an_error(world: Path) -> None:
    directory = mixture_step(world / "runs", "poems", BASE, {"name": "by_source", "sources": ["poems"], "treatment": "drop"})
    assert run_step(directory) == "failed"
    assert failure(directory) == "prompt_subset.sources: no prompt has the source poems; there are chat, mail, puzzles"


def test_a_second_sample_is_read_where_the_config_says_so(tmp_path: Path) -> None:
    make_prompts(tmp_path)
    rows = [{"prompt_id": key, "sample": k, "completion": f"sample {k} of {key}"} for key in BY_ID for k in (0, 1)]
    made(rollouts_step(tmp_path / "runs", "one", "prompts", write_jsonl(tmp_path / "r.jsonl", rows), samples=2))
    directory = mixture_step(tmp_path / "runs", "m", BASE)
    config = yaml.safe_load((directory / "config.yaml").read_text())
    config["config"]["samples"]["teacher"] = 1
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    made(directory)
    assert {completion for _, completion in contents(directory).values()} == {f"sample 1 of {key}" for key in BY_ID}
    manifest = pq.read_table(directory / "manifest.parquet")
    assert manifest["content"].to_pylist() == [int(digest(f"sample 1 of {key}", 16), 16) for key in sorted(BY_ID)]


def test_words_that_are_given_twice_are_read_back_right(tmp_path: Path) -> None:
    """As two filters of one name give, or two teachers; a dictionary with a word twice does not survive Parquet."""
    words = ["teacher", "filter keyword", "filter keyword", "one", "two", "two"]
    codes = np.array([5, 4, 3, 2, 1, 0, 4])
    column = _words(codes, words, np.arange(7) == 6)
    pq.write_table(pa.table({"reason": column}), tmp_path / "t.parquet")
    found = pq.read_table(tmp_path / "t.parquet")["reason"].to_pylist()
    assert found == ["two", "two", "one", "filter keyword", "filter keyword", "teacher", None] == column.to_pylist()
