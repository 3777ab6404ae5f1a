"""Every form that prompts and rollouts may lie in: files, folders, saved data sets, and the columns of other people's data."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import cells
from hand_written import (
    failure,
    id_of,
    made,
    prompts_config,
    prompts_step,
    question,
    rollouts_step,
    teacher_config,
    write_jsonl,
    write_step,
)

from launch.data import DataPlanner
from sftdiff.errors import SftdiffError
from sftdiff.prompts import Fates, read_prompts
from sftdiff.records import read_json
from sftdiff.sources import Unusable, completion_of, conversation, read_source, source_files
from sftdiff.steps import run_step

ROWS = [question(f"number {n}", "even" if n % 2 == 0 else "odd") for n in range(6)]
COLUMNS = {k: prompts_config("")[k] for k in ("messages_column", "prompt_column")} | {"completion_column": "completion"}


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def prompts_of(path: Path, **changed: Any) -> list[dict[str, Any]]:
    return list(read_prompts(prompts_config(path, **changed), Fates()))


def write_parts(folder: Path, kind: str) -> Path:
    """Write ROWS in two files, as a clone of a data set's repository has them."""
    folder.mkdir()
    for part in (0, 1):
        rows, name = ROWS[3 * part : 3 * part + 3], f"train-0000{part}-of-00002"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
        else:
            write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def make(kind: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write ROWS in one of FORMS; return its path and the settings that it needs."""
    from datasets import Dataset, DatasetDict

    if kind == "jsonl":
        return write_jsonl(folder / "p.jsonl", ROWS), {}
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "p.parquet")
        return folder / "p.parquet", {}
    if kind.startswith("folder of "):
        return write_parts(folder / "data", kind.removeprefix("folder of ")), {}
    if kind == "saved data set":
        Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
        return folder / "saved", {}
    DatasetDict({"train": Dataset.from_list(ROWS[:1]), "sft": Dataset.from_list(ROWS)}).save_to_disk(str(folder / "dict"))
    return folder / "dict", {"split": "sft"}


FORMS = ("jsonl", "parquet", "folder of parquet", "folder of jsonl", "saved data set", "saved splits")


@pytest.mark.parametrize("kind", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path, changed = make(kind, tmp_path)
    assert [(p["prompt_id"], p["source"], p["messages"]) for p in prompts_of(path, **changed)] == [
        (id_of(row), row["source"], row["messages"]) for row in ROWS
    ]
    files = source_files(prompts_config(path))
    assert files and all(Path(file).is_file() for file in files)
    assert len(files) == {"folder of parquet": 2, "folder of jsonl": 2}.get(kind, len(files))


@pytest.mark.parametrize("kind", FORMS)
def test_rows_are_named_by_their_number_in_every_form(tmp_path: Path, kind: str) -> None:
    path, changed = make(kind, tmp_path)
    places = [place for place, _ in read_source(prompts_config(path, **changed))]
    assert len(set(places)) == len(places) == 6
    assert all(place.startswith(str(path)) and place.endswith(f" {n}") for n, place in enumerate(places, 1))


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path, _ = make("saved splits", tmp_path)
    with pytest.raises(SftdiffError, match=r"dict has no split 'validation'; it has train, sft"):
        prompts_of(path, split="validation")


def test_the_splits_and_configs_of_a_folder_are_chosen(tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:2]), ("test", ROWS[2:3]), ("other", ROWS[3:])):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n"
        "  - {split: test, path: test.jsonl}\n- config_name: more\n  data_files: other.jsonl\n---\n"
    )
    sizes = [len(prompts_of(tmp_path, **s)) for s in ({}, {"split": "test"}, {"config_name": "more"})]
    assert sizes == [2, 1, 3]
    with pytest.raises(SftdiffError, match=r"cannot be read as a data set \(.*validation"):
        prompts_of(tmp_path, split="validation")


def test_a_folder_that_is_no_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# nothing")
    with pytest.raises(SftdiffError, match=r"cannot be read as a data set") as caught:
        prompts_of(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SftdiffError, match=r"empty is an empty folder"):
        source_files(prompts_config(tmp_path / "empty"))


def test_hidden_files_of_a_clone_do_not_count(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "data", "parquet")
    (folder / ".git").mkdir()
    (folder / ".git/HEAD").write_text("x")
    (folder / ".gitattributes").write_text("x")
    assert [Path(file).name for file in source_files(prompts_config(folder))] == [
        "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"
    ]  # fmt: skip


def test_the_files_of_a_hub_data_set_are_not_looked_for() -> None:
    assert source_files(prompts_config(None, id="who/what")) == []


def test_a_hub_data_set_that_cannot_be_reached_is_one_message() -> None:
    with pytest.raises(SftdiffError, match=r"hub data set who/what cannot be read as a data set \(") as caught:
        list(read_source(prompts_config(None, id="who/what", revision="0123abc")))
    assert "\n" not in str(caught.value)


# Conversations

USER = turn("user", "Hi")
CONVERSATIONS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str | None]] = {
    "messages": ({"messages": [USER]}, [USER], None),
    "with a reply": ({"messages": [turn("system", "S"), USER, turn("assistant", "Yes")]}, [turn("system", "S"), USER], "Yes"),
    "several turns": (
        {"messages": [USER, turn("assistant", "Yes?"), turn("user", "Go"), turn("assistant", "Gone")]},
        [USER, turn("assistant", "Yes?"), turn("user", "Go")],
        "Gone",
    ),
    "a prompt as a text": ({"prompt": "Hi"}, [USER], None),
    "a prompt as messages": ({"prompt": [turn("system", "S"), USER]}, [turn("system", "S"), USER], None),
    "messages before a prompt": ({"messages": [USER], "prompt": "another"}, [USER], None),
    "no messages but a prompt": ({"messages": None, "prompt": "Hi"}, [USER], None),
    "other names of roles": (
        {"messages": [turn("developer", "S"), USER, turn("assistant", "f()"), turn("environment", "1"), turn("function", "2")]},
        [turn("system", "S"), USER, turn("assistant", "f()"), turn("tool", "1"), turn("tool", "2")],
        None,
    ),
    "a call without content": (
        {"messages": [USER, turn("assistant", None, function_calls="f(1)", functions=None)]}, [USER], "f(1)"
    ),
    "other keys": ({"messages": [turn("user", "Hi", functions=None, name="me")]}, [USER], None),
}  # fmt: skip


@pytest.mark.parametrize(("row", "messages", "reply"), CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_the_conversation_of_a_row(row: dict[str, Any], messages: list[dict[str, Any]], reply: str | None) -> None:
    assert conversation(row, "here", COLUMNS) == (messages, reply)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([turn("assistant", "Hello")], "no user turn before the reply"),
        ([turn("system", "S")], "no user turn before the reply"),
        ([turn("system", "S"), turn("assistant", "Hello")], "no user turn before the reply"),
        ([USER, turn("assistant", "a"), turn("assistant", "b")], "no user turn before the reply"),
        ([turn("user", " \n"), turn("assistant", "a")], "empty prompt"),
        ([turn("system", "S"), turn("user", "")], "empty prompt"),
    ],
)
def test_a_conversation_without_a_question_is_unusable(messages: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        conversation({"messages": messages}, "here", COLUMNS)


def test_columns_of_other_names() -> None:
    columns = {"messages_column": "chat", "prompt_column": "question", "completion_column": "answer"}
    assert conversation({"chat": [USER], "messages": 5}, "here", columns) == ([USER], None)
    assert conversation({"question": "Hi", "prompt": 5}, "here", columns) == ([USER], None)
    assert completion_of({"answer": "Yes", "completion": 5}, "here", columns) == "Yes"
    with pytest.raises(SftdiffError, match="under 'chat' or 'question'"):
        conversation({"messages": [USER]}, "here", columns)


@pytest.mark.parametrize(
    ("value", "expected"), [("Yes", "Yes"), (None, None), ([turn("assistant", "Yes")], "Yes"), ("", "")], ids=str
)
def test_a_completion_is_a_text_or_one_assistant_message(value: Any, expected: str | None) -> None:
    assert completion_of({"completion": value}, "here", COLUMNS) == expected


NO_COMPLETIONS: list[Any] = [
    5, [], ["a"], [turn("user", "a")], [turn("assistant", "a")] * 2, [turn("assistant", None)], {"text": "a"},
]  # fmt: skip


@pytest.mark.parametrize("value", NO_COMPLETIONS, ids=str)
def test_any_other_completion_is_an_error(value: Any) -> None:
    with pytest.raises(SftdiffError, match=r"^here: "):
        completion_of({"completion": value}, "here", COLUMNS)


@pytest.mark.parametrize("as_messages", [False, True])
def test_trl_style_rows_are_prompts_and_rollouts(tmp_path: Path, as_messages: bool) -> None:
    rows = [
        {"prompt": [turn("user", f"q{n}")], "completion": [turn("assistant", f"a{n}")]}
        if as_messages
        else {"prompt": f"q{n}", "completion": f"a{n}"}
        for n in range(3)
    ]
    path = tmp_path / "trl.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    prompts = made(prompts_step(tmp_path, "p", path, source_column=None))
    rollouts = made(rollouts_step(tmp_path, "r", "p", path))
    asked = {row["prompt_id"]: row["messages"][0]["content"] for row in pq.read_table(prompts / "prompts.parquet").to_pylist()}
    told = {row["prompt_id"]: row["completion"] for row in pq.read_table(rollouts / "rollouts.parquet").to_pylist()}
    assert {asked[key]: told[key] for key in asked} == {"q0": "a0", "q1": "a1", "q2": "a2"}


# Dolci

DOLCI_MESSAGE = pa.struct([(name, pa.string()) for name in ("content", "function_calls", "functions", "role")])
DOLCI = {"dolci_instruct": "source_dataset", "dolci_think": "dataset_source"}


def dolci_rows(source_column: str) -> list[dict[str, Any]]:
    """20 maths and 10 chat rows with one reply each, one that calls a tool, and one that begins with a reply."""
    think = "<think>\nCarry the one.\n</think>\n\n" if source_column == "dataset_source" else ""
    rows: list[dict[str, Any]] = [
        {"messages": [turn("user", f"{source} {n}"), turn("assistant", f"{think}reply to {source} {n}")], "source": source}
        for source, size in (("maths", 20), ("chat", 10))
        for n in range(size)
    ]
    calls = [
        turn("system", "You may call tools.", functions='[{"name": "weather"}]'),
        turn("user", "Rain?"),
        turn("assistant", None, function_calls='weather(city="Bonn")'),
        turn("environment", '{"rain": true}'),
        turn("assistant", "Yes."),
    ]
    ends_with_a_call = [turn("user", "Snow?"), turn("assistant", None, function_calls='weather(city="Rome")')]
    no_question = [turn("assistant", "Hello"), turn("user", "")]
    rows += [{"messages": m, "source": "tools"} for m in (calls, ends_with_a_call, no_question)]
    return [{"id": f"{n}", "messages": r["messages"], source_column: r["source"], "domain": "x"} for n, r in enumerate(rows)]


def write_dolci(folder: Path, source_column: str) -> Path:
    folder.mkdir()
    rows = dolci_rows(source_column)
    names = ("id", source_column, "domain")
    schema = pa.schema([("messages", pa.list_(DOLCI_MESSAGE)), *((name, pa.string()) for name in names)])
    for part in (0, 1):
        pq.write_table(pa.Table.from_pylist(rows[part::2], schema=schema), folder / f"train-0000{part}-of-00002.parquet")
    return folder


def run_planned(tmp_path: Path, *overrides: str) -> tuple[Path, Path]:
    """Compose a config, plan its prompts and rollouts, and run these two steps."""
    ((_, config),) = cells(*overrides)
    planner = DataPlanner()
    steps = [planner.steps[i] for i in (planner.prompts(config), planner.rollouts(config, "teacher"))]
    directories = [write_step(tmp_path / "steps", s.id, s.kind, s.config, s.inputs) for s in steps]
    return made(directories[0]), made(directories[1])


@pytest.mark.parametrize("name", DOLCI)
def test_a_local_copy_of_dolci_is_a_prompt_set_with_its_own_replies(tmp_path: Path, name: str) -> None:
    folder = write_dolci(tmp_path / "dolci", DOLCI[name])
    local = [f"prompts={name}", "prompts.id=null", f"prompts.path={folder}", "prompts.sample=null"]
    prompts, rollouts = run_planned(tmp_path, *local, "teacher=stored", f"teacher.path={folder}")
    table = {row["prompt_id"]: row for row in pq.read_table(prompts / "prompts.parquet").to_pylist()}
    replies = {row["prompt_id"]: row["completion"] for row in pq.read_table(rollouts / "rollouts.parquet").to_pylist()}
    assert set(replies) == set(table)
    by_last_turn = {row["messages"][-1]["content"]: (row["source"], replies[key]) for key, row in table.items()}
    assert by_last_turn["maths 3"] == ("maths", "reply to maths 3")  # without what it thought
    assert by_last_turn['{"rain": true}'] == ("tools", "Yes.")
    assert by_last_turn["Snow?"] == ("tools", 'weather(city="Rome")')
    (calls,) = [row["messages"] for row in table.values() if len(row["messages"]) == 4]
    assert [m["role"] for m in calls] == ["system", "user", "assistant", "tool"]
    assert calls[2]["content"] == 'weather(city="Bonn")'
    summary = read_json(prompts / "summary.json")
    assert summary["totals"] == {"prompts": 32, "duplicates": 0, "unusable": 1, "over_long": 0, "not_sampled": 0}
    assert {row["source"]: row["usable"] for row in read_json(rollouts / "summary.json")["by_source"]} == {
        "chat": 10, "maths": 20, "tools": 2
    }  # fmt: skip


@pytest.mark.parametrize(("name", "size", "counts"), [
    ("dolci_instruct", 16, {"chat": 5, "maths": 10, "tools": 1}), ("dolci_think", 3, {"chat": 1, "maths": 2}),
])  # fmt: skip
def test_a_sample_of_dolci_has_exact_counts_by_source(tmp_path: Path, name: str, size: int, counts: dict[str, int]) -> None:
    folder = write_dolci(tmp_path / "dolci", DOLCI[name])
    local = [f"prompts={name}", "prompts.id=null", f"prompts.path={folder}", f"prompts.sample={size}"]
    prompts, rollouts = run_planned(tmp_path, *local, "teacher=stored", f"teacher.path={folder}")
    summary = read_json(prompts / "summary.json")
    assert {row["source"]: row["prompts"] for row in summary["by_source"] if row["prompts"]} == counts
    assert summary["read"] == 33 == sum(summary["totals"].values())
    assert summary["totals"]["not_sampled"] == 32 - size
    assert pq.read_metadata(rollouts / "rollouts.parquet").num_rows == size
    assert {row["source"]: row["usable"] for row in read_json(rollouts / "summary.json")["by_source"]} == counts


def test_what_a_teacher_thought_can_be_kept(tmp_path: Path) -> None:
    folder = write_dolci(tmp_path / "dolci", "dataset_source")
    local = ["prompts=dolci_think", "prompts.id=null", f"prompts.path={folder}", "prompts.sample=null"]
    _, rollouts = run_planned(tmp_path, *local, "teacher=stored", f"teacher.path={folder}", "teacher.reasoning=keep")
    completions = pq.read_table(rollouts / "rollouts.parquet")["completion"].to_pylist()
    assert "<think>\nCarry the one.\n</think>\n\nreply to maths 3" in completions
    assert "Yes." in completions


def test_a_source_column_that_dolci_does_not_have_is_named(tmp_path: Path) -> None:
    folder = write_dolci(tmp_path / "dolci", "source_dataset")
    directory = prompts_step(tmp_path, "p", folder, source_column="source")
    assert run_step(directory) == "failed"
    assert "no text under 'source' (set prompts.source_column to the right name" in failure(directory)


def test_a_teachers_settings_name_its_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"question": "Hi", "answer": "Yes"}])
    made(prompts_step(tmp_path, "p", path, prompt_column="question", source_column=None))
    directory = made(rollouts_step(tmp_path, "r", "p", path, prompt_column="question", completion_column="answer"))
    assert pq.read_table(directory / "rollouts.parquet")["completion"].to_pylist() == ["Yes"]
    assert json.dumps(teacher_config(path))  # as a step's record it is plain data
