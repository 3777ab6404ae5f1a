"""Prompts and rollouts: read them, check them, sample prompts by source, and align a teacher's rollouts by prompt_id.

A prompt row is `{"messages": [{"role", "content"}, ...], "source": "..."}`; messages may end with the assistant's reply, which is
then left out. A rollout row is `{"prompt_id": ...}` or `{"messages": ...}` (up to the reply), with `completion`, or `error` where
generation failed.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sftdiff.errors import SftdiffError
from sftdiff.files import read_rows, read_table, resolve, write_rows
from sftdiff.identity import prompt_id, unit_interval
from sftdiff.rows import Prompt

ROLES = ("system", "user", "assistant", "tool")
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
PROMPT_SCHEMA = pa.schema([("prompt_id", pa.string()), ("source", pa.string()), ("messages", pa.list_(MESSAGE))])
ROLLOUT_SCHEMA = pa.schema([("prompt_id", pa.string()), ("completion", pa.string()), ("error", pa.string())])


def read_prompts(path: Path, source_column: str = "source") -> list[Prompt]:
    """Read a prompt file; the same conversation twice counts once. A malformed row is an error with its file and line."""
    prompts: dict[str, Prompt] = {}
    for place, row in read_rows(path):
        messages = _prompt_messages(row.get("messages"), place)
        key = prompt_id(messages)
        source = row.get(source_column)
        if not isinstance(source, str) or not source:
            raise SftdiffError(f"{place}: no text under {source_column!r} (set prompts.source_column to the right name)")
        prompts[key] = Prompt(key, source, tuple((m["role"], m["content"]) for m in messages))
    if not prompts:
        raise SftdiffError(f"{path} has no prompts")
    return list(prompts.values())


def _prompt_messages(messages: Any, place: str) -> list[Mapping[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise SftdiffError(f"{place}: 'messages' must be a list of {{role, content}} objects")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise SftdiffError(f"{place}: each message needs a role ({', '.join(ROLES)}) and a text as content")
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise SftdiffError(f"{place}: the conversation up to the reply must end with a user turn")
    return list(messages)


def sample_by_source(prompts: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """Return exactly `count` prompts, with each source's share kept (largest remainders), chosen by a seeded hash."""
    if count is None:
        return list(prompts)
    if not 0 < count <= len(prompts):
        raise SftdiffError(f"prompts.sample: cannot take {count} of {len(prompts)} prompts")
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.source].append(prompt)
    exact = {source: count * len(group) / len(prompts) for source, group in groups.items()}
    take = {source: int(value) for source, value in exact.items()}
    by_remainder = sorted(groups, key=lambda s: (take[s] - exact[s], s))
    for source in by_remainder[: count - sum(take.values())]:
        take[source] += 1
    chosen: set[str] = set()
    for source, group in groups.items():
        ranked = sorted(group, key=lambda p: (unit_interval("sample", seed, p.prompt_id), p.prompt_id))
        chosen.update(p.prompt_id for p in ranked[: take[source]])
    return [p for p in prompts if p.prompt_id in chosen]


def read_completions(path: Path) -> dict[str, tuple[str | None, str | None]]:
    """Return {prompt_id: (completion, error)} of a rollout file. An empty completion is an error row, never a reply."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for place, row in read_rows(path):
        key = row.get("prompt_id") or prompt_id(_prompt_messages(row.get("messages"), place))
        completion, error = row.get("completion"), row.get("error")
        for name, value in (("prompt_id", key), ("completion", completion), ("error", error)):
            if value is not None and not isinstance(value, str):
                raise SftdiffError(f"{place}: {name!r} must be a text")
        if completion is None and not error:
            raise SftdiffError(f"{place}: a rollout needs 'completion', or 'error' where generation failed")
        if completion is not None and not completion.strip():
            completion, error = None, "empty completion"
        if key in found and found[key] != (completion, error):
            raise SftdiffError(f"{place}: a second, different rollout for prompt {key}")
        found[key] = (completion, error)
    return found


def run_rollouts(step: Any) -> dict[str, Any]:
    """The rollouts step: the prompt set (sampled) and one teacher's stored rollouts on it."""
    prompts_config, teacher = step.config["prompts"], step.config["teacher"]
    prompts = sample_by_source(
        read_prompts(resolve(prompts_config["path"]), prompts_config["source_column"]),
        prompts_config["sample"],
        prompts_config["sample_seed"],
    )
    completions = read_completions(resolve(teacher["path"]))
    rows = []
    for prompt in prompts:
        completion, error = completions.get(prompt.prompt_id, (None, f"{teacher['path']} has no row for this prompt"))
        rows.append({"prompt_id": prompt.prompt_id, "completion": completion, "error": error})
    write_prompts(step.directory / "prompts.parquet", prompts)
    write_rows(step.directory / "rollouts.parquet", rows, ROLLOUT_SCHEMA)
    errors = sum(row["completion"] is None for row in rows)
    return {"prompts": len(prompts), "errors": errors, "by_source": dict(Counter(p.source for p in prompts))}


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    rows = [
        {"prompt_id": p.prompt_id, "source": p.source, "messages": [{"role": r, "content": c} for r, c in p.messages]}
        for p in prompts
    ]
    write_rows(path, rows, PROMPT_SCHEMA)


def load_prompts(directory: Path) -> list[Prompt]:
    """Read the prompt set of a rollouts step."""
    return [
        Prompt(row["prompt_id"], row["source"], tuple((m["role"], m["content"]) for m in row["messages"]))
        for row in read_table(directory / "prompts.parquet").to_pylist()
    ]


def load_rollouts(directory: Path) -> dict[str, str]:
    """Read the usable completions of a rollouts step, by prompt_id."""
    rows = read_table(directory / "rollouts.parquet").to_pylist()
    return {row["prompt_id"]: row["completion"] for row in rows if row["completion"] is not None}
