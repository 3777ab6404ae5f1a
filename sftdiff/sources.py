"""Where rows come from: a JSONL or Parquet file, a folder, or a data set on the hub; and what conversation a row holds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftdiff.errors import SftdiffError, first_line
from sftdiff.files import EMBEDDED, read_rows, resolve

ROLES = ("system", "user", "assistant", "tool")
# Other names of the same roles: Olmo's data call a tool's answer "environment", OpenAI's newer system turn is "developer".
ALIASES = {"environment": "tool", "function": "tool", "developer": "system"}
ROW_FILES = (".jsonl", ".json", ".parquet", ".csv", ".arrow")
Message = dict[str, str]


class Unusable(Exception):
    """A row that is well formed and cannot be trained on; its text is the reason."""


def read_source(source: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of each row of a source, streamed; `place` names file and row for messages.

    `source` has `path` (a file; a folder, as a clone of a data set or `save_to_disk` makes it; or embedded://NAME) or `id` (a
    data set on the hub, at `revision`), and `split` and `config_name` of data sets.
    """
    if source.get("id"):
        name = f"hub data set {source['id']}"
        yield from _read_data_set(source["id"], name, source)
        return
    path = Path(source["path"]).expanduser()
    if not source["path"].startswith(EMBEDDED) and path.is_dir():
        yield from _read_folder(path, source)
    else:
        yield from read_rows(resolve(source["path"]))


def source_files(source: Mapping[str, Any]) -> list[str]:
    """Return the local files whose content decides what a source yields."""
    if source.get("id") or not source.get("path"):
        return []
    path = Path(source["path"]).expanduser()
    if source["path"].startswith(EMBEDDED) or not path.is_dir():
        return [source["path"]]
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and not any(part.startswith(".") for part in p.parts)]
    if not files:
        raise SftdiffError(f"{path} is an empty folder")
    return [str(p) for p in files]


def _read_folder(path: Path, source: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import DatasetDict, load_from_disk

        found = load_from_disk(str(path))
        if isinstance(found, DatasetDict):
            found = found[_split(source, list(found), str(path))]
        for number, row in enumerate(found, 1):
            yield f"{path}, row {number}", dict(row)
        return
    kinds = {p.suffix for p in path.rglob("*") if p.suffix in ROW_FILES}
    if len(kinds) > 1:  # the library would read the more frequent kind and say nothing of the other
        raise SftdiffError(f"{path} has files of several kinds ({', '.join(sorted(kinds))}): put those of one kind into a folder")
    yield from _read_data_set(str(path), str(path), source)


def _split(source: Mapping[str, Any], known: list[str], name: str) -> str:
    if source["split"] not in known:
        raise SftdiffError(f"{name} has no split {source['split']!r}; it has {', '.join(known)}")
    return str(source["split"])


def _read_data_set(identifier: str, name: str, source: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    try:
        revision = {"revision": source["revision"]} if source.get("revision") else {}
        rows = load_dataset(identifier, source.get("config_name"), split=source["split"], streaming=True, **revision)
        for number, row in enumerate(rows, 1):
            yield f"{name}, row {number}", dict(row)
    except SftdiffError:
        raise
    except Exception as error:  # the library lets errors of its readers and HTTP client through, which change
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise
        raise SftdiffError(f"{name} cannot be read as a data set ({first_line(error)})") from None


def conversation(row: Mapping[str, Any], place: str, columns: Mapping[str, Any]) -> tuple[list[Message], str | None]:
    """Return (messages up to the reply, reply or None) of a row.

    The messages lie in `messages_column` (the last assistant turn is the reply), or the prompt in `prompt_column`, as a text or
    as messages. Raises SftdiffError for a malformed row and Unusable for one without a question.
    """
    messages, prompt = row.get(columns["messages_column"]), row.get(columns["prompt_column"])
    if messages is None and isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    elif messages is None:
        messages = prompt
    if not isinstance(messages, list) or not messages:
        names = f"{columns['messages_column']!r} or {columns['prompt_column']!r}"
        how = "other names are set with messages_column and prompt_column"
        raise SftdiffError(f"{place}: expected a list of {{role, content}} objects under {names}; {how}")
    turns = [_message(message, place) for message in messages]
    reply = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        raise Unusable("no user turn before the reply")
    if not any(turn["content"].strip() for turn in turns if turn["role"] in ("user", "tool")):
        raise Unusable("empty prompt")
    return turns, reply


def _message(message: Any, place: str) -> Message:
    role = message.get("role") if isinstance(message, dict) else None
    role = ALIASES.get(role, role) if isinstance(role, str) else None
    if role not in ROLES:
        raise SftdiffError(f"{place}: each message needs a role ({', '.join(ROLES)}) and a text as content")
    content = message.get("content")
    if content is None and isinstance(message.get("function_calls"), str):
        content = message["function_calls"]  # a turn that only calls a tool: the call is what the model said
    if not isinstance(content, str):
        raise SftdiffError(f"{place}: the content of the {role} turn is not a text (parts and images are not read)")
    return {"role": role, "content": content}


def completion_of(row: Mapping[str, Any], place: str, columns: Mapping[str, Any]) -> Any:
    """Return the text under `completion_column`, from a text or a list with one assistant message; None if there is none."""
    value = row.get(columns["completion_column"])
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and value[0].get("role") == "assistant":
        return _message(value[0], place)["content"]
    if value is not None and not isinstance(value, str):
        raise SftdiffError(f"{place}: {columns['completion_column']!r} must be a text or one assistant message")
    return value
