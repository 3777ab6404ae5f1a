"""Prompts and rollouts: identity, sampling, every kind of malformed row, and rows that are made up at random."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_written import id_of, question, rollouts_step, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.identity import prompt_id
from sftdiff.prompts import load_rollouts, read_completions, read_prompts, sample_by_source
from sftdiff.records import read_done
from sftdiff.rows import Prompt
from sftdiff.steps import run_step

CONVERSATION = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Grüße! What is 2 + 2?"},
]
GOLDEN = "84b9d9c9d0163214"

roles = st.sampled_from(["system", "user", "assistant", "tool"])
conversations = st.lists(st.fixed_dictionaries({"role": roles, "content": st.text(max_size=4)}), min_size=1, max_size=3)
any_text = st.text(st.characters(), max_size=6)  # with halves of surrogate pairs, which JSON can write and UTF-8 cannot
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
near_messages = st.lists(st.fixed_dictionaries({"role": roles | any_json, "content": any_text | any_json}) | any_json, max_size=3)
near_rows = st.fixed_dictionaries(
    {},
    optional={
        "messages": near_messages | any_json,
        "source": any_text | any_json,
        "prompt_id": any_text | any_json,
        "completion": any_text | any_json,
        "error": any_text | any_json,
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def made_up_prompts(counts: dict[str, int]) -> list[Prompt]:
    return [
        Prompt(f"{source}{n}", source, (("user", f"{source} {n}"),)) for source, count in counts.items() for n in range(count)
    ]


# Identity


def test_prompt_id_is_stable() -> None:
    assert prompt_id(CONVERSATION) == GOLDEN


@given(conversations, conversations)
@settings(deadline=None)
def test_prompt_id_tells_conversations_apart(one: list[dict[str, str]], two: list[dict[str, str]]) -> None:
    assert (prompt_id(one) == prompt_id(two)) == (one == two)


@pytest.mark.parametrize(
    "changed",
    [
        [CONVERSATION[1]],
        CONVERSATION[::-1],
        [{**CONVERSATION[0], "role": "user"}, CONVERSATION[1]],
        [CONVERSATION[0], {"role": "user", "content": "Grüße! What is 2 + 2? "}],
        [CONVERSATION[0], {"role": "user", "content": "Gru\u0308ße! What is 2 + 2?"}],
        [*CONVERSATION, {"role": "assistant", "content": ""}],
        [{"role": "system", "content": "You are terse.\nuser\nGrüße! What is 2 + 2?"}],
    ],
    ids=["left out", "order", "role", "space", "unicode form", "empty turn", "joined"],
)
def test_prompt_id_changes_with_the_conversation(changed: list[dict[str, str]]) -> None:
    assert prompt_id(changed) != prompt_id(CONVERSATION)


def test_prompt_id_ignores_other_keys_and_the_reply(tmp_path: Path) -> None:
    with_reply = [*CONVERSATION, {"role": "assistant", "content": "4"}]
    rows = [{"messages": [{**m, "name": "x"} for m in with_reply], "source": "maths", "prompt_id": "anything"}]
    (prompt,) = read_prompts(write_jsonl(tmp_path / "a.jsonl", rows))
    assert prompt.prompt_id == GOLDEN
    assert prompt.messages[-1] == ("user", CONVERSATION[1]["content"])


# Sampling


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=1), st.data())
@settings(deadline=None)
def test_a_sample_has_the_exact_size_and_each_source_its_share(counts: dict[str, int], data: st.DataObject) -> None:
    prompts = made_up_prompts(counts)
    size, seed = data.draw(st.integers(1, len(prompts))), data.draw(st.integers(0, 9))
    sample = sample_by_source(prompts, size, seed)
    assert len({p.prompt_id for p in sample}) == len(sample) == size
    assert [p for p in prompts if p in set(sample)] == sample  # in the order of the file
    for source, count in counts.items():
        assert abs(sum(p.source == source for p in sample) - size * count / len(prompts)) < 1
    shuffled = data.draw(st.permutations(prompts))
    assert set(sample_by_source(shuffled, size, seed)) == set(sample)


def test_a_sample_by_largest_remainders() -> None:
    prompts = made_up_prompts({"mail": 50, "chat": 30, "code": 13, "poems": 7})
    assert Counter(p.source for p in sample_by_source(prompts, 10, 0)) == {"mail": 5, "chat": 3, "code": 1, "poems": 1}


def test_seeds_draw_different_samples_and_one_seed_the_same() -> None:
    prompts = made_up_prompts({"mail": 40, "chat": 40})
    samples = [frozenset(sample_by_source(prompts, 20, seed)) for seed in (0, 1, 2, 0)]
    assert len(set(samples)) == 3
    assert samples[0] == samples[3]


def test_a_larger_sample_of_one_source_contains_the_smaller_one() -> None:
    prompts = made_up_prompts({"mail": 40})
    assert set(sample_by_source(prompts, 5, 3)) < set(sample_by_source(prompts, 15, 3))


def test_no_sample_takes_all_and_an_impossible_one_is_an_error() -> None:
    prompts = made_up_prompts({"mail": 3})
    assert sample_by_source(prompts, None, 0) == prompts
    for size in (0, -1, 4):
        with pytest.raises(SftdiffError, match=rf"prompts\.sample: cannot take {size} of 3 prompts"):
            sample_by_source(prompts, size, 0)


# Malformed rows

USER = {"role": "user", "content": "hello"}
MALFORMED = {
    "bad JSON": (b'{"messages": [', "not valid JSON"),
    "not an object": (b'["messages"]', "expected a JSON object, found list"),
    "null": (b"null", "expected a JSON object, found NoneType"),
    "no messages": (b'{"source": "a"}', "'messages' must be a list"),
    "empty messages": (b'{"messages": [], "source": "a"}', "'messages' must be a list"),
    "messages a text": (b'{"messages": "hello", "source": "a"}', "'messages' must be a list"),
    "wrong role": (json.dumps({"messages": [{**USER, "role": "human"}], "source": "a"}).encode(), "needs a role (system, user,"),
    "no role": (json.dumps({"messages": [{"content": "x"}], "source": "a"}).encode(), "needs a role"),
    "content a list": (json.dumps({"messages": [{**USER, "content": ["x"]}], "source": "a"}).encode(), "a text as content"),
    "content missing": (json.dumps({"messages": [{"role": "user"}], "source": "a"}).encode(), "a text as content"),
    "only a reply": (
        json.dumps({"messages": [{**USER, "role": "assistant"}], "source": "a"}).encode(),
        "must end with a user turn",
    ),
    "only a system turn": (
        json.dumps({"messages": [{**USER, "role": "system"}], "source": "a"}).encode(),
        "must end with a user turn",
    ),
    "two replies": (
        json.dumps({"messages": [USER, {**USER, "role": "assistant"}, {**USER, "role": "assistant"}], "source": "a"}).encode(),
        "must end with a user turn",
    ),
    "no source": (json.dumps({"messages": [USER]}).encode(), "no text under 'source' (set prompts.source_column"),
    "empty source": (json.dumps({"messages": [USER], "source": ""}).encode(), "no text under 'source'"),
    "source a number": (json.dumps({"messages": [USER], "source": 3}).encode(), "no text under 'source'"),
    "half a surrogate pair": (json.dumps({"messages": [{**USER, "content": "\ud83d"}], "source": "a"}).encode(), "surrogates"),
    "nested too deep": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not a readable row"),
    "a number of 5,000 digits": (b'{"messages": ' + b"1" * 5000 + b"}", "not a readable row"),
}


@pytest.mark.parametrize(("line", "words"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_row_is_an_error_with_file_and_line(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "some_prompts.jsonl"
    path.write_bytes(json.dumps(question("fine")).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(SftdiffError) as caught:
        read_prompts(path)
    assert words in str(caught.value)
    assert f"{path}, line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(question("fine")).encode() + b'\n{"messages": "Gr\xfc\xdfe"}\n')
    with pytest.raises(SftdiffError, match=r"latin\.jsonl.*not valid UTF-8"):
        read_prompts(path)


def test_a_file_of_another_kind_or_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("a,b\n")
    with pytest.raises(SftdiffError, match=r"prompts\.csv: expected a file that ends in \.jsonl or \.parquet"):
        read_prompts(tmp_path / "prompts.csv")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(SftdiffError, match=r"empty\.jsonl has no prompts"):
        read_prompts(tmp_path / "empty.jsonl")


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
            read_prompts(tmp_path / "broken.parquet")


def check_read_or_named(path: Path) -> None:
    """Read a file as prompts and as rollouts: it is read, or refused with an error that names it."""
    for read in (read_prompts, read_completions):
        try:
            read(path)
        except SftdiffError as error:
            assert str(path) in str(error)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None)
def test_damaged_parquet_is_read_or_an_error_that_names_it(
    folder: Path, parquet_bytes: bytes, changes: list[tuple[int, int]]
) -> None:
    path, content = folder / "damaged.parquet", bytearray(parquet_bytes)
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    check_read_or_named(path)


def test_a_row_of_a_parquet_file_is_named_by_its_number(tmp_path: Path) -> None:
    rows = [question("fine"), {"messages": [{"role": "user", "content": None}], "source": "a"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with pytest.raises(SftdiffError, match=r"p\.parquet, row 2: each message needs a role"):
        read_prompts(tmp_path / "p.parquet")


@given(st.lists(any_json | near_rows, max_size=3))
@settings(deadline=None)
def test_any_json_value_is_a_row_or_a_clear_error(folder: Path, values: list[Any]) -> None:
    path = write_jsonl(folder / "any.jsonl", values)
    try:
        for prompt in read_prompts(path):
            assert len(prompt.prompt_id) == 16
            assert prompt.source
    except SftdiffError as error:
        assert str(path) in str(error)
    try:
        for key, (completion, reason) in read_completions(path).items():
            assert isinstance(key, str)
            assert bool(reason) or (completion is not None and bool(completion.strip()))
    except SftdiffError as error:
        assert str(path) in str(error)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_rows_or_a_clear_error(folder: Path, content: bytes) -> None:
    path = folder / "bytes.jsonl"
    path.write_bytes(content)
    check_read_or_named(path)


# Files of both kinds, and rollouts


def test_the_same_conversation_twice_counts_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [question("a"), question("b"), question("a")])
    assert [p.messages[0][1] for p in read_prompts(path)] == ["a", "b"]


def test_the_source_can_lie_in_another_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"messages": [USER], "dataset": "mail"}])
    assert read_prompts(path, "dataset")[0].source == "mail"


def test_parquet_and_jsonl_give_the_same(tmp_path: Path) -> None:
    rows = [
        {**question("a"), "completion": "one", "error": None},
        {"messages": [*CONVERSATION, {"role": "assistant", "content": "4"}], "source": "maths", "completion": " ", "error": None},
        {**question("c", "code"), "completion": None, "error": "timed out"},
    ]
    text, table = write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    assert read_prompts(text) == read_prompts(table)
    assert read_completions(text) == read_completions(table)
    assert list(read_completions(table).values()) == [("one", None), (None, "empty completion"), (None, "timed out")]


def test_a_rollout_is_found_by_its_conversation_or_by_its_prompt_id(tmp_path: Path) -> None:
    rows = [{"messages": CONVERSATION, "completion": "4"}, {"prompt_id": "abc", "completion": "5"}]
    assert read_completions(write_jsonl(tmp_path / "r.jsonl", rows)) == {GOLDEN: ("4", None), "abc": ("5", None)}


def test_two_rollouts_of_one_prompt(tmp_path: Path) -> None:
    row = {"prompt_id": "abc", "completion": "4"}
    assert len(read_completions(write_jsonl(tmp_path / "same.jsonl", [row, row]))) == 1
    path = write_jsonl(tmp_path / "two.jsonl", [row, {**row, "completion": "5"}])
    with pytest.raises(SftdiffError, match=r"two\.jsonl, line 2: a second, different rollout for prompt abc"):
        read_completions(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt_id": "abc"}, "needs 'completion', or 'error'"),
        ({"prompt_id": "abc", "completion": None, "error": ""}, "needs 'completion', or 'error'"),
        ({"prompt_id": "abc", "completion": ["x"]}, "'completion' must be a text"),
        ({"prompt_id": "abc", "error": {"code": 429}}, "'error' must be a text"),
        ({"prompt_id": 17, "completion": "x"}, "'prompt_id' must be a text"),
        ({"prompt_id": ["abc"], "completion": "x"}, "'prompt_id' must be a text"),
        ({"completion": "x"}, "'messages' must be a list"),
    ],
)
def test_a_malformed_rollout_is_an_error_with_file_and_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt_id": "fine", "completion": "x"}, row])
    with pytest.raises(SftdiffError) as caught:
        read_completions(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert words in str(caught.value)


def test_the_rollouts_step_turns_failed_empty_and_missing_rollouts_into_error_rows(tmp_path: Path) -> None:
    prompts = [question(text, source) for text, source in (("a", "mail"), ("b", "mail"), ("c", "chat"), ("d", "chat"))]
    replies = [("completion", "fine"), ("completion", " \n"), ("error", "timed out")]
    rollouts = [{"prompt_id": id_of(p), name: text} for p, (name, text) in zip(prompts, replies, strict=False)]
    stray = {"prompt_id": "of another prompt set", "completion": "unused"}
    files = write_jsonl(tmp_path / "p.jsonl", prompts), write_jsonl(tmp_path / "r.jsonl", [*rollouts, stray])
    directory = rollouts_step(tmp_path / "runs", "one", *files)
    assert run_step(directory) == "done"
    rows = {row["prompt_id"]: row for row in read_table(directory / "rollouts.parquet").to_pylist()}
    assert [rows[id_of(p)]["completion"] for p in prompts] == ["fine", None, None, None]
    reasons = [rows[id_of(p)]["error"] for p in prompts]
    assert reasons == [None, "empty completion", "timed out", f"{tmp_path / 'r.jsonl'} has no row for this prompt"]
    assert load_rollouts(directory) == {id_of(prompts[0]): "fine"}
    done = read_done(directory)
    assert done is not None
    assert done["summary"] == {"prompts": 4, "errors": 3, "by_source": {"mail": 2, "chat": 2}}
