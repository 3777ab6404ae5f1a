"""The pack step: a mixture's rows as tokens, and what the length cap removes. Shared by all seeds of a mixture.

Also the pure functions that order rows into optimizer steps and pack them into sequences.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftdiff.errors import SftdiffError
from sftdiff.files import read_table
from sftdiff.identity import unit_interval
from sftdiff.mixture import mixture_rows
from sftdiff.records import read_done, write_json
from sftdiff.render import render_row, rendering_hash
from sftdiff.students import load_student

PACK_VERSION = 2
BATCH = 1024  # rows that are written at a time
MATCHES = ("rows", "tokens", "steps")
TOKENS_SCHEMA = pa.schema([("prompt_id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("prompt_length", pa.int32())])


@dataclass(frozen=True)
class Row:
    """One conversation as tokens; the loss is on `input_ids[prompt_length:]`."""

    prompt_id: str
    input_ids: list[int]
    prompt_length: int


def run_pack(step: Any) -> dict[str, Any]:
    """Render and tokenize each row of the mixture, apply the length cap, and count what it removed by source."""
    _, tokenizer = load_student(step.input("student"))
    for name in step.record.inputs:  # the texts that the mixture refers to
        step.input(name)
    count, totals, removed = 0, Counter[str](), Counter[str]()
    total = (read_done(step.input("mixture")) or {})["summary"]["rows"]
    with pq.ParquetWriter(step.directory / "tokens.parquet", TOKENS_SCHEMA, compression="zstd") as writer:
        for batch in _batched(_tokenized(step, tokenizer, removed), BATCH):
            writer.write_table(pa.Table.from_pylist(batch, schema=TOKENS_SCHEMA))
            count += len(batch)
            totals["tokens"] += sum(len(r["input_ids"]) for r in batch)
            totals["loss_tokens"] += sum(len(r["input_ids"]) - r["prompt_length"] for r in batch)
            step.progress(count, total, "rows")
    if not count:
        cap = step.config["max_length"]
        raise SftdiffError(f"train.max_length={cap} removes every row: raise it, or use train.over_length=truncate")
    summary = {"rows": count, **totals, "over_length": dict(removed), "rendering": rendering_hash(tokenizer)}
    write_json(step.directory / "summary.json", summary)
    return summary


def _tokenized(step: Any, tokenizer: Any, removed: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the mixture as tokens, without those over the length cap, which are counted by source."""
    cap, over_length = step.config["max_length"], step.config["over_length"]
    for row in mixture_rows(step.input("mixture")):
        tokens, prompt_length = render_row(tokenizer, row["messages"], row["completion"])
        if len(tokens) > cap:
            removed[row["source"]] += 1
            if over_length == "drop" or prompt_length >= cap:
                continue
            tokens = tokens[:cap]
        yield {"prompt_id": row["prompt_id"], "input_ids": tokens, "prompt_length": prompt_length}


def _batched(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, size)):
        yield batch


def load_rows(directory: Any) -> list[Row]:
    """Read the tokens of a pack step."""
    return [Row(**row) for row in read_table(directory / "tokens.parquet").to_pylist()]


def order_steps(rows: Sequence[Row], seed: int, epochs: float, batch_size: int) -> list[list[Row]]:
    """Return the rows of each optimizer step.

    The order in each epoch comes from (seed, epoch, prompt_id) alone, so neither the mixture's row order nor the number of ranks
    changes what a step sees. The last batch of an epoch may be smaller; a fraction of an epoch takes that share of its rows.
    """
    steps = []
    for ranked in _epochs(rows, seed):
        ranked = ranked[: max(1, round(min(epochs, 1.0) * len(ranked)))]
        steps += [ranked[k : k + batch_size] for k in range(0, len(ranked), batch_size)]
        epochs -= 1
        if epochs <= 1e-9:
            break
    return steps


def order_matched(rows: Sequence[Row], seed: int, batch_size: int, match: str, target: int) -> list[list[Row]]:
    """Return the rows of each optimizer step, epoch after epoch, until `target` rows, loss tokens or steps (`match`) are reached.

    No row is seen again before all have been seen as often: a smaller mixture is repeated, never sampled with replacement.
    Rows and steps are met exactly, loss tokens with the row that reaches them.
    """
    steps, seen = list[list[Row]](), 0
    for ranked in _epochs(rows, seed):
        for k in range(0, len(ranked), batch_size):
            step = []
            for row in ranked[k : k + batch_size]:
                if seen >= target:
                    break
                step.append(row)
                seen += {"rows": 1, "tokens": len(row.input_ids) - row.prompt_length, "steps": 0}[match]
            steps += [step] if step else []
            seen += match == "steps"
            if seen >= target:
                return steps
    raise AssertionError("an epoch always follows")


def _epochs(rows: Sequence[Row], seed: int) -> Iterator[list[Row]]:
    """Yield all rows again and again, in an order that depends on the seed, the number of the epoch and the prompt_ids."""
    for epoch in count_from():
        yield sorted(rows, key=lambda row: (unit_interval("order", seed, epoch, row.prompt_id), row.prompt_id))


def match_target(reference: Mapping[str, Any], match: str, epochs: float, batch_size: int) -> int:
    """Return how many rows, loss tokens or optimizer steps `epochs` of a packed mixture take (its summary is `reference`)."""
    if match == "steps":
        whole, part = divmod(epochs, 1)
        last = max(1, round(part * reference["rows"])) if part > 1e-9 else 0
        return int(whole) * math.ceil(int(reference["rows"]) / batch_size) + math.ceil(last / batch_size)
    return round(epochs * int(reference[{"rows": "rows", "tokens": "loss_tokens"}[match]]))


def split_step(rows: Sequence[Row], parts: int) -> list[list[Row]]:
    """Divide an optimizer step's rows into `parts` of similar token counts (ranks x micro-batches); longest first."""
    if len(rows) < parts:
        # A part must not be empty: repeat a row without its loss, so that every rank takes part in the step.
        filler = min(rows, key=lambda r: len(r.input_ids))
        rows = [*rows, *[Row(filler.prompt_id, filler.input_ids, len(filler.input_ids))] * (parts - len(rows))]
    shares: list[list[Row]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for row in sorted(rows, key=lambda r: (-len(r.input_ids), r.prompt_id)):
        k = min(range(parts), key=lambda j: (len(shares[j]) > 0 and sizes[j], j))
        shares[k].append(row)
        sizes[k] += len(row.input_ids)
    return shares


def fill_sequences(rows: Sequence[Row], length: int) -> list[list[Row]]:
    """Pack rows into as few sequences of at most `length` tokens as it takes, of similar size.

    Sequences are padded to the longest of their batch, so balanced ones waste least. A row longer than `length` sets the limit.
    """
    limit = max(length, max(len(row.input_ids) for row in rows))
    count = max(1, -(-sum(len(row.input_ids) for row in rows) // limit))
    while True:
        sequences = split_step(rows, count)
        if max(sum(len(row.input_ids) for row in sequence) for sequence in sequences) <= limit:
            return sequences
        count += 1
