"""Small prompt and rollout tables for the tests of filters, and the embedded rollouts with what is true of them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftdiff.corpus import Corpus, Rows
from sftdiff.files import DATA
from sftdiff.identity import digest, prompt_id

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
PROMPTS = pa.schema([("prompt_id", pa.string()), ("source", pa.string()), ("messages", pa.list_(MESSAGE))])
ROLLOUTS = pa.schema([("prompt_id", pa.string()), ("completion", pa.string()), ("error", pa.string()), ("content", pa.string())])


def write_corpus(folder: Path, conversations: Iterable[tuple[str, str | None]], **settings: Any) -> Corpus:
    """Write (prompt, reply or None where generation failed) pairs as the two tables, in the order of their prompt_ids."""
    rows = []
    for prompt, reply in conversations:
        messages = [{"role": "user", "content": prompt}]
        rows.append({"prompt_id": prompt_id(messages), "source": "test", "messages": messages, "completion": reply})
    return write_rows(folder, rows, **settings)


def write_rows(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    rows.sort(key=lambda row: row["prompt_id"])
    pq.write_table(pa.Table.from_pylist(rows, schema=PROMPTS), folder / "prompts.parquet")
    rollouts = []
    for row in rows:
        reply = row["completion"]
        failed, content = (None, digest(reply)) if reply is not None else ("no answer", None)
        rollouts.append({"prompt_id": row["prompt_id"], "completion": reply, "error": failed, "content": content})
    pq.write_table(pa.Table.from_pylist(rollouts, schema=ROLLOUTS), folder / "rollouts.parquet")
    return Corpus(folder / "prompts.parquet", folder / "rollouts.parquet", **settings)


def embedded_corpus(folder: Path, teacher: str = "gemini", keep: Sequence[str] | None = None, **settings: Any) -> Corpus:
    """Write the embedded prompts of both pools with one teacher's replies; `keep` are prompt_ids."""
    replies = {row["prompt_id"]: row["completion"] for row in jsonl(f"rollouts/{teacher}.jsonl")}
    rows: dict[str, dict[str, Any]] = {}
    for pool in ("gemini_mix", "olmo_mix"):
        for row in jsonl(f"prompts/{pool}.jsonl"):
            key = prompt_id(row["messages"])
            rows[key] = {**row, "prompt_id": key, "completion": replies[key]}
    return write_rows(folder, [row for key, row in rows.items() if keep is None or key in keep], **settings)


def jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def ids_of(corpus: Corpus) -> list[str]:
    return [key for rows in corpus.chunks() for key in rows.ids]


def rows_of(*texts: str) -> Rows:
    """One chunk whose replies are these texts; the ids are "0", "1", ..."""
    rows = [{"prompt_id": f"{n}", "source": "test", "messages": [{"role": "user", "content": "Hi"}]} for n in range(len(texts))]
    return Rows(pa.Table.from_pylist(rows, schema=PROMPTS), pa.chunked_array([pa.array(list(texts), pa.string())]))


def scores_of(function: Any, corpus: Corpus, params: dict[str, Any]) -> dict[str, float]:
    """Run a corpus filter; one sequence of scores for each chunk, one score for each of its rows."""
    found: dict[str, float] = {}
    for rows, scores in zip(corpus.chunks(), function(corpus, params), strict=True):
        found.update(zip(rows.ids, (float(score) for score in scores), strict=True))
    return found
