"""Filters: the scores step, chunks and worker processes, what is refused, and filters of a user's own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from filter_rows import ids_of, rows_of, write_corpus
from hand_written import (
    KEYWORD,
    KEYWORD_FILE,
    failure,
    id_of,
    made,
    prompts_step,
    question,
    rollouts_step,
    scores_step,
    write_jsonl,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from own_filters import above_mean_scores, long_scores

import sftdiff.sorting
from sftdiff.corpus import Corpus
from sftdiff.errors import SftdiffError
from sftdiff.filters import corpus_filter, filter_function, load_filter
from sftdiff.filters.control import random_scores
from sftdiff.records import read_done
from sftdiff.scores import load_scores, score_chunks
from sftdiff.sorting import texts_of
from sftdiff.steps import run_step

LONG, ABOVE_MEAN = "own_filters.long_scores", "own_filters.above_mean_scores"
replies = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9) | st.none(), min_size=1, max_size=25)


def scores_of(corpus: Corpus, target: str, workers: int | None = None) -> list[float]:
    return [float(score) for part in score_chunks(corpus, target, {"seed": 1}, workers) for score in part]


def corpus_of(folder: Path, texts: Sequence[str | None], **changed: Any) -> Corpus:
    return write_corpus(folder, [(f"prompt {n}", text) for n, text in enumerate(texts)], **changed)


# Chunks and processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.mark.parametrize("target", [LONG, ABOVE_MEAN, "sftdiff.filters.control.random_scores"])
@given(texts=replies, chunk=st.integers(1, 30), part=st.sampled_from(["reply", "prompt", "both"]))
@settings(max_examples=25)
def test_scores_do_not_depend_on_the_size_of_the_chunks(
    folder: Path, target: str, texts: list[str | None], chunk: int, part: str
) -> None:
    whole = corpus_of(folder, texts, part=part)
    expected = scores_of(whole, target)
    assert len(expected) == whole.count == sum(text is not None for text in texts)
    assert scores_of(Corpus(whole.prompts, whole.rollouts, part, chunk=chunk), target) == expected


@given(texts=replies, chunk=st.integers(1, 30))
@settings(max_examples=40)
def test_chunks_hold_the_rows_with_a_rollout_in_their_order(folder: Path, texts: list[str | None], chunk: int) -> None:
    corpus = corpus_of(folder, texts, chunk=chunk)
    expected = {id_of(question(f"prompt {n}")): text for n, text in enumerate(texts) if text is not None}
    found = {key: reply for rows in corpus.chunks() for key, reply in zip(rows.ids, rows.replies, strict=True)}
    assert list(found) == sorted(expected) and found == expected
    assert corpus.has_rollout.sum() == corpus.count == len(expected)
    assert all(len(rows) <= chunk for rows in corpus.chunks())
    every_prompt = [id_of(question(f"prompt {n}")) for n in range(len(texts))]
    assert ids_of(Corpus(corpus.prompts, None, "prompt", chunk=chunk)) == sorted(every_prompt)


def test_worker_processes_give_the_scores_that_one_process_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten row groups, of which one has no rollout at all, on two processes."""
    monkeypatch.setattr(sftdiff.sorting, "GROUP", 40)
    prompts = [question(f"prompt {n}") for n in range(400)]
    keys = sorted(map(id_of, prompts))
    without = {*keys[80:120], keys[3], keys[399]}
    rows = [{"prompt_id": key, "completion": f"{key[:4]} " * (int(key, 16) % 7 + 1)} for key in keys if key not in without]
    made(prompts_step(tmp_path, "p", write_jsonl(tmp_path / "p.jsonl", prompts)))
    made(rollouts_step(tmp_path, "r", "p", write_jsonl(tmp_path / "r.jsonl", rows)))
    corpus = Corpus(tmp_path / "p/prompts.parquet", tmp_path / "r/rollouts.parquet")
    assert corpus.groups == 10
    expected = scores_of(corpus, LONG, 1)
    assert len(expected) == 358 == len(set(expected))
    assert scores_of(corpus, LONG, 2) == expected
    assert scores_of(Corpus(corpus.prompts, corpus.rollouts, chunk=7), LONG, 1) == expected
    assert [key for k in range(10) for key in corpus.group(k).ids] == ids_of(corpus)


def test_an_error_in_a_worker_process_is_raised(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ["a"])
    with pytest.raises(KeyError, match="seed"):
        list(score_chunks(corpus, "sftdiff.filters.control.random_scores", {}, 2))


@pytest.mark.parametrize(("part", "expected"), [("reply", ["b"]), ("prompt", ["S\na"]), ("both", ["S\na\nb"])])
def test_the_texts_of_the_parts(tmp_path: Path, part: str, expected: list[str]) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}]
    path = write_jsonl(tmp_path / "p.jsonl", [{"messages": messages, "source": "chat", "completion": "b"}])
    made(prompts_step(tmp_path, "p", path))
    made(rollouts_step(tmp_path, "r", "p", path))
    (rows,) = Corpus(tmp_path / "p/prompts.parquet", tmp_path / "r/rollouts.parquet", part).chunks()
    assert (rows.texts, rows.sources, rows.messages) == (expected, ["chat"], [messages])


# The scores step


def steps_of(folder: Path) -> Path:
    """Run the steps over three prompts, of which the last has no rollout."""
    prompts = [question("I asked."), question("Twice."), question("Failed.")]
    rows = [{"prompt_id": id_of(p), "completion": text} for p, text in zip(prompts, ("I am ashamed.", "Fine."), strict=False)]
    rows.append({"prompt_id": id_of(prompts[2]), "error": "ashamed"})
    made(prompts_step(folder / "runs", "p", write_jsonl(folder / "p.jsonl", prompts)))
    made(rollouts_step(folder / "runs", "r", "p", write_jsonl(folder / "r.jsonl", rows)))
    return folder / "runs"


def by_id(directory: Path) -> dict[str, float]:
    table = pq.read_table(directory / "scores.parquet")
    assert table["score"].to_pylist() == [None if np.isnan(x) else x for x in load_scores(directory)]
    return {row["prompt_id"]: row["score"] for row in table.to_pylist()}


@pytest.mark.parametrize(("part", "expected"), [("reply", [1, 0]), ("prompt", [1, 0]), ("both", [2, 0])])
def test_the_scores_step_reads_the_part_that_the_config_names(tmp_path: Path, part: str, expected: list[float]) -> None:
    runs, lists = steps_of(tmp_path), tmp_path / "lists.yaml"
    words = ["asked", *KEYWORD_FILE["traits"]["negative_emotion"]["words"]]
    lists.write_text(f"traits: {{gloom: {{words: {words}, patterns: []}}}}")
    directory = made(scores_step(runs, "s", "p", "r", KEYWORD, {"lists": str(lists), "traits": ["gloom"]}, part))
    # A prompt without a rollout has no score, whatever part is read.
    keys = [id_of(question(text)) for text in ("I asked.", "Twice.", "Failed.")]
    assert by_id(directory) == dict(zip(keys, [*expected, None], strict=True))
    done = read_done(directory)
    assert done is not None and done["summary"] == {"rows": 2, "scored": 2, "above_zero": 1}


@pytest.mark.parametrize("target", [LONG, ABOVE_MEAN])
def test_a_filter_of_ones_own_runs_as_a_step(tmp_path: Path, target: str) -> None:
    directory = made(scores_step(steps_of(tmp_path), "s", "p", "r", target, {}))
    scores = by_id(directory)
    assert list(scores) == texts_of(np.sort(np.array([int(k, 16) for k in scores], np.uint64))).to_pylist()
    sad, fine = scores[id_of(question("I asked."))], scores[id_of(question("Twice."))]
    assert (int(sad), int(fine)) == ((13, 5) if target == LONG else (4, -4))


def test_a_filter_that_gives_too_few_scores_is_an_error(tmp_path: Path) -> None:
    directory = scores_step(steps_of(tmp_path), "s", "p", "r", "own_filters.too_few_scores", {})
    assert run_step(directory) == "failed"
    assert failure(directory) == "filter own_filters.too_few_scores gave 1 scores for 2 rows"


def test_a_scores_step_refuses_an_unmarked_function(tmp_path: Path) -> None:
    directory = scores_step(steps_of(tmp_path), "s", "p", "r", "os.system", {})
    assert run_step(directory) == "failed"
    assert "os.system is not a function marked with @filter_function or @corpus_filter" in failure(directory)


# Plug points


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "sftdiff.filters.load_filter",
        "sftdiff.filters.nothing",
        "sftdiff.traits.blackmail",
        "no_such_package.filters.words",
        "keyword_scores",
        ".filters.keyword_scores",
        "",
    ],
)
def test_only_marked_functions_are_filters(target: str) -> None:
    with pytest.raises(SftdiffError, match=r"filter\._target_: .* is not a function marked with @filter_function or @corpus"):
        load_filter(target)


def test_what_a_filters_module_cannot_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_helper\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SftdiffError, match="needs_more cannot be imported: No module named 'no_such_helper'"):
        load_filter("needs_more.scores")


def test_filters_of_ones_own_are_found_with_their_version_and_kind() -> None:
    assert load_filter(LONG) == (long_scores, 4, "filter_function")
    assert load_filter(ABOVE_MEAN) == (above_mean_scores, 2, "corpus_filter")


def test_a_mark_leaves_the_function_as_it_is() -> None:
    def rowwise(rows: Any, params: Any) -> Sequence[float]:
        return [1.0]

    def over_all(corpus: Any, params: Any) -> Iterator[Sequence[float]]:
        yield [1.0]

    assert filter_function(version=1)(rowwise) is rowwise
    assert corpus_filter(version=1)(over_all) is over_all


# The control


def test_random_scores_depend_on_seed_and_prompt_alone() -> None:
    rows = rows_of(*["text"] * 200)
    scores = random_scores(rows, {"seed": 0})
    assert all(0 <= value < 1 for value in scores)
    assert 0.4 < sum(scores) / len(scores) < 0.6
    assert len(set(scores)) == 200
    assert random_scores(rows_of("other", "texts"), {"seed": 0}) == scores[:2]
    assert random_scores(rows, {"seed": 1}) != scores
