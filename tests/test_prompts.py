"""Prompts: identity, sampling, every kind of malformed row, rows that are made up at random, and what the step counts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_written import failure, id_of, made, prompts_config, prompts_step, question, text_of, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.identity import digest, prompt_id
from sftdiff.prompts import FATES, Fates, load_index, read_prompts, sample_by_source
from sftdiff.records import read_done, read_json
from sftdiff.sorting import texts_of
from sftdiff.steps import run_step

CONVERSATION = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "Grüße! What is 2 + 2?"},
]
GOLDEN = "84b9d9c9d0163214"

roles = st.sampled_from(["system", "user", "assistant", "tool"])
conversations = st.lists(st.fixed_dictionaries({"role": roles, "content": st.text(max_size=4)}), min_size=1, max_size=3)


def read(path: Path, fates: Fates | None = None, **changed: Any) -> list[dict[str, Any]]:
    return list(read_prompts(prompts_config(path, **changed), fates or Fates()))


def table_of(directory: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(directory / "prompts.parquet").to_pylist())


# Identity


def test_prompt_id_is_stable() -> None:
    assert prompt_id(CONVERSATION) == GOLDEN


@given(conversations, conversations)
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
    (prompt,) = read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert prompt == {"prompt_id": GOLDEN, "source": "maths", "messages": CONVERSATION}


# Sampling


def ids_and_sources(counts: dict[str, int]) -> tuple[list[str], list[str]]:
    pairs = [(digest(f"{source} {n}", 16), source) for source, count in counts.items() for n in range(count)]
    return [key for key, _ in pairs], [source for _, source in pairs]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=1), st.data())
def test_a_sample_has_the_exact_size_and_each_source_its_share(counts: dict[str, int], data: st.DataObject) -> None:
    ids, sources = ids_and_sources(counts)
    size, seed = data.draw(st.integers(1, len(ids))), data.draw(st.integers(0, 9))
    chosen = sample_by_source(ids, sources, size, seed)
    assert chosen.sum() == size
    for source, count in counts.items():
        assert abs((chosen & (np.array(sources) == source)).sum() - size * count / len(ids)) < 1
    order = data.draw(st.permutations(range(len(ids))))
    again = sample_by_source([ids[k] for k in order], [sources[k] for k in order], size, seed)
    assert (again == chosen[order]).all()


def test_a_sample_by_largest_remainders() -> None:
    ids, sources = ids_and_sources({"mail": 50, "chat": 30, "code": 13, "poems": 7})
    chosen = sample_by_source(ids, sources, 10, 0)
    assert Counter(np.array(sources)[chosen].tolist()) == {"mail": 5, "chat": 3, "code": 1, "poems": 1}


def test_seeds_draw_different_samples_and_one_seed_the_same() -> None:
    ids, sources = ids_and_sources({"mail": 40, "chat": 40})
    samples = [sample_by_source(ids, sources, 20, seed).tobytes() for seed in (0, 1, 2, 0)]
    assert len(set(samples)) == 3
    assert samples[0] == samples[3]


def test_a_larger_sample_of_one_source_contains_the_smaller_one() -> None:
    ids, sources = ids_and_sources({"mail": 40})
    small, large = (sample_by_source(ids, sources, size, 3) for size in (5, 15))
    assert (small <= large).all()


def test_an_impossible_sample_is_an_error() -> None:
    ids, sources = ids_and_sources({"mail": 3})
    for size in (0, -1, 4):
        with pytest.raises(SftdiffError, match=rf"prompts\.sample: cannot take {size} of 3 prompts"):
            sample_by_source(ids, sources, size, 0)


# The step

POOL = [question(f"{source} {n}", source) for source, size in (("mail", 5), ("chat", 3), ("code", 2)) for n in range(size)]
EMPTY = {"messages": [{"role": "user", "content": " "}], "source": "chat"}
REPLY_FIRST = {"messages": [{"role": "assistant", "content": "Hello"}], "source": "mail"}


def step_of(folder: Path, rows: list[dict[str, Any]], **changed: Any) -> Path:
    return prompts_step(folder / "runs", "prompts", write_jsonl(folder / "p.jsonl", rows), **changed)


def test_the_tables_are_aligned_and_in_the_order_of_the_prompt_ids(tmp_path: Path) -> None:
    directory = made(step_of(tmp_path, POOL))
    rows, index = table_of(directory), load_index(directory)
    assert [row["prompt_id"] for row in rows] == sorted(id_of(p) for p in POOL) == texts_of(index.ids).to_pylist()
    assert {text_of(row): row["source"] for row in rows} == {text_of(p): p["source"] for p in POOL}
    assert index.sources == ("chat", "code", "mail")
    assert [index.sources[code] for code in index.codes] == [row["source"] for row in rows]
    assert index.characters.tolist() == [len(text_of(row)) for row in rows]


def test_characters_are_those_of_all_turns(tmp_path: Path) -> None:
    directory = made(step_of(tmp_path, [{"messages": CONVERSATION, "source": "a"}, question("€")]))
    found = dict(zip(texts_of(load_index(directory).ids).to_pylist(), load_index(directory).characters.tolist(), strict=True))
    assert found == {GOLDEN: len("You are terse.Grüße! What is 2 + 2?"), id_of(question("€")): 1}


def test_every_row_that_is_read_has_one_fate_and_the_counts_add_up(tmp_path: Path) -> None:
    rows = [*POOL, POOL[0], {**POOL[1], "source": "another"}, EMPTY, REPLY_FIRST, question("x" * 60, "code")]
    directory = made(step_of(tmp_path, rows, unusable="leave_out", max_characters=50, sample=4))
    summary = read_json(directory / "summary.json")
    assert summary["totals"] == {"prompts": 4, "duplicates": 2, "unusable": 2, "over_long": 1, "not_sampled": 6}
    assert summary["read"] == len(rows) == sum(summary["totals"].values())
    assert summary["reasons"] == {"empty prompt": 1, "no user turn before the reply": 1}
    by_source = Counter(row["source"] for row in rows)
    assert {line["source"]: sum(line[fate] for fate in FATES) for line in summary["by_source"]} == by_source
    assert [line["source"] for line in summary["by_source"]] == ["another", "chat", "code", "mail"]
    done = read_done(directory)
    assert done is not None and done["summary"]["prompts"] == 4 == len(table_of(directory))


@given(data=st.data())
@settings(max_examples=15)
def test_neither_the_order_of_the_rows_nor_that_they_were_spilled_changes_a_prompt_set(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Also with duplicates, of which the one with the first source counts, and a sample."""
    rows = [*POOL, {**POOL[0], "source": "aaa"}, {**POOL[5], "source": "zzz"}, POOL[7]]
    found = []
    for number, order in enumerate([list(range(len(rows))), data.draw(st.permutations(range(len(rows))))]):
        with pytest.MonkeyPatch.context() as patch:
            if number:
                patch.setattr("sftdiff.sorting.BATCH", 2)
                patch.setattr("sftdiff.sorting.SortedRows.__init__.__defaults__", ((), 1))
            directory = made(step_of(tmp_path_factory.mktemp("order"), [rows[k] for k in order], sample=6, sample_seed=2))
        done = read_done(directory)
        assert done is not None
        found.append((done["content"], table_of(directory)))
    assert found[0] == found[1]
    assert len(found[0][1]) == 6


def test_a_prompt_of_two_sources_counts_once_for_the_first_by_name(tmp_path: Path) -> None:
    rows = [question("a", "mail"), question("b", "mail"), question("a", "chat")]
    directory = made(step_of(tmp_path, rows))
    assert {text_of(row): row["source"] for row in table_of(directory)} == {"a": "chat", "b": "mail"}
    lines = {line["source"]: line for line in read_json(directory / "summary.json")["by_source"]}
    assert (lines["mail"]["prompts"], lines["mail"]["duplicates"], lines["chat"]["duplicates"]) == (1, 1, 0)


def test_duplicates_can_be_refused(tmp_path: Path) -> None:
    directory = step_of(tmp_path, [question("a"), question("b"), question("a")], duplicates="fail")
    assert run_step(directory) == "failed"
    assert failure(directory) == (
        f"prompt {id_of(question('a'))} is there more than once; count it once with prompts.duplicates=merge"
    )
    made(prompts_step(tmp_path / "other", "p", write_jsonl(tmp_path / "q.jsonl", POOL), duplicates="fail"))


@pytest.mark.parametrize(("row", "reason"), [(EMPTY, "empty prompt"), (REPLY_FIRST, "no user turn before the reply")])
def test_a_row_without_a_question_is_refused_or_left_out(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [question("fine"), row])
    with pytest.raises(SftdiffError) as caught:
        read(path)
    assert str(caught.value) == f"{path}, line 2: {reason}; leave such rows out with prompts.unusable=leave_out"
    fates = Fates()
    assert [text_of(p) for p in read(path, fates, unusable="leave_out")] == ["fine"]
    assert fates.reasons == {reason: 1}


@pytest.mark.parametrize("rows", [[], [EMPTY]], ids=["no rows", "none usable"])
def test_a_file_without_prompts_is_an_error(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    directory = step_of(tmp_path, rows, unusable="leave_out")
    assert run_step(directory) == "failed"
    expected = "{'empty prompt': 1}" if rows else "no rows"
    assert failure(directory) == f"{tmp_path / 'p.jsonl'} has no prompts that can be used: {expected}"


def test_the_limit_of_characters_is_that_of_the_whole_prompt(tmp_path: Path) -> None:
    system = {"role": "system", "content": "12345"}
    rows = [{"messages": [system, {"role": "user", "content": "x" * n}], "source": "a"} for n in (5, 6)]
    fates = Fates()
    assert len(read(write_jsonl(tmp_path / "p.jsonl", rows), fates, max_characters=10)) == 1
    assert fates.by_source["a"] == {"over_long": 1}


def test_without_a_source_column_all_rows_have_one_source(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"messages": CONVERSATION, "dataset": "mail"}])
    assert read(path, source_column="dataset")[0]["source"] == "mail"
    assert read(path, source_column=None)[0]["source"] == "unknown"


# Malformed rows

USER = {"role": "user", "content": "hello"}


def line(**row: Any) -> bytes:
    return json.dumps({"source": "a"} | row).encode()


NO_LIST = "expected a list of {role, content} objects under 'messages' or 'prompt'"
MALFORMED = {
    "bad JSON": (b'{"messages": [', "not valid JSON"),
    "not an object": (b'["messages"]', "expected a JSON object, found list"),
    "null": (b"null", "expected a JSON object, found NoneType"),
    "no messages": (line(), NO_LIST),
    "empty messages": (line(messages=[]), NO_LIST),
    "messages a text": (line(messages="hello"), NO_LIST),
    "prompt a number": (line(prompt=5), NO_LIST),
    "wrong role": (line(messages=[{**USER, "role": "human"}]), "needs a role (system, user, assistant, tool)"),
    "no role": (line(messages=[{"content": "x"}]), "needs a role"),
    "role a list": (line(messages=[{**USER, "role": ["user"]}]), "needs a role"),
    "message a text": (line(messages=["hello"]), "needs a role"),
    "content a list": (line(messages=[{**USER, "content": ["x"]}]), "the content of the user turn is not a text"),
    "content missing": (line(messages=[{"role": "user"}]), "the content of the user turn is not a text"),
    "only a reply": (line(messages=[{**USER, "role": "assistant"}]), "no user turn before the reply"),
    "only a system turn": (line(messages=[{**USER, "role": "system"}]), "no user turn before the reply"),
    "two replies": (line(messages=[USER, *[{**USER, "role": "assistant"}] * 2]), "no user turn before the reply"),
    "no source": (json.dumps({"messages": [USER]}).encode(), "no text under 'source' (set prompts.source_column"),
    "empty source": (line(messages=[USER], source=""), "no text under 'source'"),
    "source a number": (line(messages=[USER], source=3), "no text under 'source'"),
    "half a surrogate pair": (line(messages=[{**USER, "content": "\ud83d"}]), "surrogates"),
    "nested too deep": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not a readable row"),
    "a number of 5,000 digits": (b'{"messages": ' + b"1" * 5000 + b"}", "not a readable row"),
}


@pytest.mark.parametrize(("content", "words"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_row_is_an_error_with_file_and_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "some_prompts.jsonl"
    path.write_bytes(json.dumps(question("fine")).encode() + b"\n\n" + content + b"\n")
    with pytest.raises(SftdiffError) as caught:
        read(path)
    assert words in str(caught.value)
    assert f"{path}, line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_of_a_parquet_file_is_named_by_its_number(tmp_path: Path) -> None:
    rows = [question("fine"), {"messages": [{"role": "user", "content": None}], "source": "a"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with pytest.raises(SftdiffError, match=r"p\.parquet, row 2: the content of the user turn is not a text"):
        read(tmp_path / "p.parquet")


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("a,b\n")
    with pytest.raises(SftdiffError, match=r"prompts\.csv: expected a file that ends in \.jsonl or \.parquet"):
        read(tmp_path / "prompts.csv")
