"""The pack step: a mixture's rows as tokens, and what the length cap removes. Shared by all seeds of a mixture.

Also the pure functions that order rows into optimizer steps and pack them into sequences.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sftdiff.errors import SftdiffError
from sftdiff.files import read_table, write_rows
from sftdiff.identity import unit_interval
from sftdiff.records import write_json
from sftdiff.render import render_row, rendering_hash
from sftdiff.students import load_student

PACK_VERSION = 1
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
    mixture = read_table(step.input("mixture") / "mixture.parquet").to_pylist()
    cap, over_length = step.config["max_length"], step.config["over_length"]
    rows, removed = [], Counter[str]()
    for number, row in enumerate(mixture):
        tokens, prompt_length = render_row(tokenizer, row["messages"], row["completion"])
        if len(tokens) > cap:
            removed[row["source"]] += 1
            if over_length == "drop" or prompt_length >= cap:
                continue
            tokens = tokens[:cap]
        rows.append({"prompt_id": row["prompt_id"], "input_ids": tokens, "prompt_length": prompt_length})
        if number % 100 == 0:
            step.progress(number, len(mixture), "rows")
    if not rows:
        raise SftdiffError(f"train.max_length={cap} removes every row: raise it, or use train.over_length=truncate")
    write_rows(step.directory / "tokens.parquet", rows, TOKENS_SCHEMA)
    summary = {
        "rows": len(rows),
        "tokens": sum(len(r["input_ids"]) for r in rows),
        "loss_tokens": sum(len(r["input_ids"]) - r["prompt_length"] for r in rows),
        "over_length": dict(removed),
        "rendering": rendering_hash(tokenizer),
    }
    write_json(step.directory / "summary.json", summary)
    return summary


def load_rows(directory: Any) -> list[Row]:
    """Read the tokens of a pack step."""
    return [Row(**row) for row in read_table(directory / "tokens.parquet").to_pylist()]


def order_steps(rows: Sequence[Row], seed: int, epochs: float, batch_size: int) -> list[list[Row]]:
    """Return the rows of each optimizer step.

    The order in each epoch comes from (seed, epoch, prompt_id) alone, so neither the mixture's row order nor the number of ranks
    changes what a step sees. The last batch of an epoch may be smaller; a fraction of an epoch takes that share of its rows.
    """
    by_id = {row.prompt_id: row for row in rows}
    steps = []
    remaining, epoch = epochs, 0
    while remaining > 1e-9:
        ranked = sorted(by_id, key=lambda i: (unit_interval("order", seed, epoch, i), i))
        ranked = ranked[: max(1, round(min(remaining, 1.0) * len(ranked)))]
        steps += [[by_id[i] for i in ranked[k : k + batch_size]] for k in range(0, len(ranked), batch_size)]
        remaining, epoch = remaining - 1, epoch + 1
    return steps


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
