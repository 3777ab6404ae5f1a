"""Rollouts: found by conversation or prompt_id, aligned with the prompts, every kind of malformed row, and made-up ones."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_written import failure, id_of, made, prompts_config, prompts_step, question, rollouts_step, teacher_config, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.identity import digest
from sftdiff.prompts import Fates, read_prompts
from sftdiff.records import read_done, read_json
from sftdiff.sorting import SortedRows, texts_of
from sftdiff.steps import run_step
from sftdiff.teachers import FOUND_SCHEMA, load_contents, rollouts_file, stored_rollouts

CONVERSATION = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "What is 2 + 2?"}]
GOLDEN = id_of({"messages": CONVERSATION})
PROMPTS = [question(f"{source} {n}", source) for source in ("mail", "chat") for n in range(4)]

roles = st.sampled_from(["system", "user", "assistant", "tool", "environment"])
any_text = st.text(st.characters(), max_size=6)  # with halves of surrogate pairs, which JSON can write and UTF-8 cannot
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
near_message = st.fixed_dictionaries(
    {"role": roles | any_json, "content": any_text | any_json}, optional={"function_calls": any_text | any_json}
)
near_messages = st.lists(near_message | any_json, max_size=3)
near_rows = st.fixed_dictionaries(
    {},
    optional={
        "messages": near_messages | any_json,
        "prompt": any_text | near_messages,
        "source": any_text | any_json,
        "prompt_id": any_text | any_json | st.just("0123456789abcdef"),
        "completion": any_text | any_json | st.lists(near_message, max_size=2),
        "error": any_text | any_json,
        "sample": st.integers() | any_json,
    },
)


def read(path: Path, **changed: Any) -> list[dict[str, Any]]:
    return list(stored_rollouts(teacher_config(path, **changed), lambda key: True, Counter()))


def found(path: Path, **changed: Any) -> dict[str, tuple[str | None, str | None]]:
    return {row["prompt_id"]: (row["completion"], row["error"]) for row in read(path, **changed)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


# Rows


def test_a_rollout_is_found_by_its_conversation_or_by_its_prompt_id(tmp_path: Path) -> None:
    key = "0" * 15 + "f"
    rows = [
        {"messages": CONVERSATION, "completion": "4"},
        {"prompt_id": key, "completion": "5"},
        {"messages": [*question("a")["messages"], {"role": "assistant", "content": "6"}]},
        {"prompt_id": None, "prompt": "b", "completion": "7"},
    ]
    assert found(write_jsonl(tmp_path / "r.jsonl", rows)) == {
        GOLDEN: ("4", None), key: ("5", None), id_of(question("a")): ("6", None), id_of(question("b")): ("7", None)
    }  # fmt: skip


def test_what_is_no_prompt_id_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt_id": "not one", "completion": "x"}])
    with pytest.raises(SftdiffError, match=r"r\.jsonl, line 1: 'not one' is not a prompt_id \(16 hex digits\)"):
        read(path)


def test_a_reply_beside_an_error_is_an_error_row(tmp_path: Path) -> None:
    key = "0" * 16
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt_id": key, "completion": "half a rep", "error": "connection lost"}])
    assert found(path) == {key: (None, "connection lost")}


def test_parquet_and_jsonl_give_the_same(tmp_path: Path) -> None:
    rows = [
        {**question("a"), "completion": "one", "error": None},
        {"messages": CONVERSATION, "source": "maths", "completion": " ", "error": None},
        {**question("c", "code"), "completion": None, "error": "timed out"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    table = read(tmp_path / "r.parquet")
    assert table == read(write_jsonl(tmp_path / "r.jsonl", rows))
    assert [(r["completion"], r["error"]) for r in table] == [("one", None), (None, "empty completion"), (None, "timed out")]


@pytest.mark.parametrize(
    ("completion", "strip", "keep"),
    [
        ("plain", "plain", "plain"),
        ("<think>\nhm\n</think>\n\nreply", "reply", "<think>\nhm\n</think>\n\nreply"),
        ("<think></think>reply", "reply", "reply"),
        ("<think>never ends", None, None),
        ("<think>hm</think> \n", None, None),
    ],
)
def test_what_a_teacher_thought(tmp_path: Path, completion: str, strip: str | None, keep: str | None) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"messages": CONVERSATION, "completion": completion}])
    for reasoning, expected in (("strip", strip), ("keep", keep)):
        assert found(path, reasoning=reasoning)[GOLDEN] == (expected, None if expected else "empty completion")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt_id": "abc"}, "needs 'completion' (teacher.completion_column), or 'error'"),
        ({"prompt_id": "abc", "completion": None, "error": ""}, "needs 'completion' (teacher.completion_column), or 'error'"),
        ({"prompt_id": "abc", "completion": ["x"]}, "'completion' must be a text or one assistant message"),
        ({"prompt_id": "abc", "completion": [{"role": "assistant", "content": 5}]}, "the assistant turn is not a text"),
        ({"prompt_id": "abc", "error": {"code": 429}}, "'error' must be texts"),
        ({"prompt_id": 17, "completion": "x"}, "'prompt_id' and"),
        ({"prompt_id": ["abc"], "completion": "x"}, "'prompt_id' and"),
        ({"prompt_id": "abc", "completion": "x", "sample": "first"}, "'sample' a number that counts from 0"),
        ({"prompt_id": "abc", "completion": "x", "sample": -1}, "'sample' a number that counts from 0"),
        ({"prompt_id": "abc", "completion": "x", "sample": 2**40}, "'sample' a number that counts from 0"),
        ({"completion": "x"}, "expected a list of {role, content} objects under 'messages' or 'prompt'"),
        ({"messages": CONVERSATION}, "needs 'completion' (teacher.completion_column), or 'error'"),
    ],
)
def test_a_malformed_rollout_is_an_error_with_file_and_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    row = {k: "0123456789abcdef" if v == "abc" else v for k, v in row.items()}
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt_id": "0" * 16, "completion": "x"}, row])
    with pytest.raises(SftdiffError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert words in str(caught.value)


# Rows that are made up


def check_read_or_named(path: Path) -> None:
    """Read a file as prompts and as rollouts: each row can be sorted, or is refused with an error that names the file."""
    try:
        for prompt in read_prompts(prompts_config(path, unusable="leave_out"), Fates()):
            assert len(prompt["prompt_id"]) == 16 and prompt["source"]
    except SftdiffError as error:
        assert str(path) in str(error)
    try:
        rows = read(path)
    except SftdiffError as error:
        assert str(path) in str(error)
        return
    for row in rows:
        assert bool(row["error"]) or bool(row["completion"].strip())
    with SortedRows(FOUND_SCHEMA, path.parent, then=["sample"]) as collected:
        for row in rows:
            collected.add(row)
        assert sum(table.num_rows for table in collected.tables()) == len(rows)


@given(st.lists(any_json | near_rows, max_size=3))
@settings(max_examples=200)
def test_any_json_value_is_a_row_or_a_clear_error(folder: Path, values: list[Any]) -> None:
    check_read_or_named(write_jsonl(folder / "any.jsonl", values))


@given(near_rows)
@settings(max_examples=200)
def test_any_row_that_is_nearly_one_is_one_or_a_clear_error(folder: Path, row: dict[str, Any]) -> None:
    check_read_or_named(write_jsonl(folder / "near.jsonl", [{"source": "a", **question("b"), "completion": "c"} | row]))


@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_a_clear_error(folder: Path, content: bytes) -> None:
    path = folder / "bytes.jsonl"
    path.write_bytes(content)
    check_read_or_named(path)


def test_text_that_is_not_utf8_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps({**question("fine"), "completion": "a"}).encode() + b'\n{"messages": "Gr\xfc\xdfe"}\n')
    with pytest.raises(SftdiffError, match=r"latin\.jsonl.*not valid UTF-8"):
        read(path)


@pytest.fixture(scope="module")
def parquet_bytes(folder: Path) -> bytes:
    path = folder / "whole.parquet"
    rows = [{**question(f"number {n}"), "completion": f"reply {n}"} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    return path.read_bytes()


def test_a_parquet_file_cut_short_or_of_other_content_is_named(tmp_path: Path, parquet_bytes: bytes) -> None:
    for content in (b"", b"PAR1", b'{"messages": []}', parquet_bytes[:-20], parquet_bytes[200:]):
        (tmp_path / "broken.parquet").write_bytes(content)
        with pytest.raises(SftdiffError, match=r"broken\.parquet is not a readable Parquet file"):
            read(tmp_path / "broken.parquet")


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_parquet_is_read_or_an_error_that_names_it(
    folder: Path, parquet_bytes: bytes, changes: list[tuple[int, int]]
) -> None:
    path, content = folder / "damaged.parquet", bytearray(parquet_bytes)
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    check_read_or_named(path)


# The step


def rows_for(prompts: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    return [{"prompt_id": id_of(p), "completion": f"reply to {id_of(p)}"} | more for p in prompts]


def steps_of(folder: Path, rows: list[dict[str, Any]], **changed: Any) -> tuple[Path, Path]:
    """Write both steps over PROMPTS, and run that of the prompts."""
    prompts = made(prompts_step(folder / "runs", "prompts", write_jsonl(folder / "p.jsonl", PROMPTS)))
    return prompts, rollouts_step(folder / "runs", "rollouts", "prompts", write_jsonl(folder / "r.jsonl", rows), **changed)


def check_aligned(prompts: Path, rollouts: Path, sample: int = 0) -> None:
    keys = pq.read_table(prompts / "prompts.parquet")["prompt_id"].to_pylist()
    table = pq.read_table(rollouts_file(rollouts, sample)).to_pylist()
    usable, content, characters = load_contents(rollouts, sample)
    assert [row["prompt_id"] for row in table] == keys
    for row, fine, number, length in zip(table, usable, content, characters, strict=True):
        assert fine == (row["completion"] is not None) == (row["error"] is None)
        assert row["content"] == (digest(row["completion"], 16) if fine else None)
        expected = (row["content"], len(row["completion"])) if fine else ("0" * 16, 0)
        assert (texts_of(np.array([number]))[0].as_py(), length) == expected


def test_failed_empty_and_missing_rollouts_become_error_rows(tmp_path: Path) -> None:
    rows = rows_for(PROMPTS[:5])
    rows[1]["completion"] = " \n"
    rows[2] = {"prompt_id": id_of(PROMPTS[2]), "error": "timed out"}
    stray = {"prompt_id": "f" * 16, "completion": "of another prompt set"}
    prompts, directory = steps_of(tmp_path, [*rows, stray])
    made(directory)
    check_aligned(prompts, directory)
    table = {row["prompt_id"]: row for row in pq.read_table(directory / "rollouts.parquet").to_pylist()}
    missing = f"{tmp_path / 'r.jsonl'} has no row for this prompt"
    assert [table[id_of(p)]["error"] for p in PROMPTS] == [None, "empty completion", "timed out", None, None, *[missing] * 3]
    assert read_json(directory / "summary.json") == {
        "prompts": 8,
        "by_source": [
            {"source": "chat", "usable": 1, "unusable": 3, "reasons": {missing: 3}},
            {"source": "mail", "usable": 2, "unusable": 2, "reasons": {"empty completion": 1, "timed out": 1}},
        ],
    }
    done = read_done(directory)
    assert done is not None and done["summary"] == {"prompts": 8, "errors": 5, "rows_of_other_prompts": 1}


def test_rollouts_of_another_prompt_set_are_all_missing(tmp_path: Path) -> None:
    prompts, directory = steps_of(tmp_path, rows_for([question("another")]))
    made(directory)
    check_aligned(prompts, directory)
    assert not load_contents(directory)[0].any()


def test_two_different_rollouts_of_one_prompt_are_refused_and_the_same_one_twice_counts_once(tmp_path: Path) -> None:
    rows = rows_for(PROMPTS)
    prompts, directory = steps_of(tmp_path, [*rows, rows[3]])
    made(directory)
    check_aligned(prompts, directory)
    path = write_jsonl(tmp_path / "two.jsonl", [*rows, rows[3] | {"completion": "x"}])
    other = rollouts_step(tmp_path / "runs", "two", "prompts", path)
    assert run_step(other) == "failed"
    assert failure(other) == (
        f"{tmp_path / 'two.jsonl'}: two different rollouts for prompt {id_of(PROMPTS[3])}; several rollouts of one prompt need a "
        "'sample' column that counts them from 0"
    )


def test_several_samples_have_a_file_each(tmp_path: Path) -> None:
    rows = rows_for(PROMPTS) + [row | {"completion": "second"} for row in rows_for(PROMPTS[:2], sample=1)]
    prompts, directory = steps_of(tmp_path, rows, samples=2)
    made(directory)
    for sample in (0, 1):
        check_aligned(prompts, directory, sample)
    assert [int(load_contents(directory, sample)[0].sum()) for sample in (0, 1)] == [8, 2]
    assert set(pq.read_table(directory / "rollouts-1.parquet")["completion"].to_pylist()) == {"second", None}
    done = read_done(directory)
    assert done is not None and done["summary"] == {"prompts": 8, "errors": 6}


@given(data=st.data())
@settings(max_examples=15)
def test_neither_the_order_of_the_rows_nor_the_size_of_the_data_changes_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A large prompt set looks nothing up while it reads, and sorts on disk."""
    rows = [*rows_for(data.draw(st.lists(st.sampled_from(PROMPTS), unique_by=id_of))), *rows_for([question("of another set")])]
    shuffled = [*data.draw(st.permutations(rows)), {"prompt_id": "f" * 16, "completion": "x"}]
    contents = []
    for number, given_rows in enumerate((rows, shuffled)):
        folder = tmp_path_factory.mktemp("order")
        path = write_jsonl(tmp_path_factory.getbasetemp() / "order.jsonl", given_rows)  # the errors name it
        prompts, _ = steps_of(folder, [])
        directory = rollouts_step(folder / "runs", "mine", "prompts", path)
        with pytest.MonkeyPatch.context() as patch:
            if number:
                patch.setattr("sftdiff.sorting.BATCH", 2)
                patch.setattr("sftdiff.sorting.SortedRows.__init__.__defaults__", ((), 1))
            made(directory)
        check_aligned(prompts, directory)
        done = read_done(directory)
        assert done is not None
        contents.append(done["content"])
    assert contents[0] == contents[1]
