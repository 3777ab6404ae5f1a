"""The rows that filters and subsets look at: a prompt set and one teacher's rollouts on it, streamed in chunks.

Both tables have one row a prompt, in the order of the prompt_ids, so that they align by position.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sftdiff.sorting import tables_of

PARTS = ("reply", "prompt", "both")
CHUNK = 4096  # rows


@dataclass(frozen=True)
class Rows:
    """A chunk of rows that have a rollout. `texts` is what a filter with this `part` reads: the reply, the prompt or both."""

    prompt_table: pa.Table  # prompt_id, source, messages
    completions: pa.ChunkedArray | None  # None: prompts alone
    part: str = "reply"

    def __len__(self) -> int:
        return int(self.prompt_table.num_rows)

    @cached_property
    def ids(self) -> list[str]:
        return list(self.prompt_table["prompt_id"].to_pylist())

    @cached_property
    def sources(self) -> list[str]:
        return list(self.prompt_table["source"].to_pylist())

    @cached_property
    def messages(self) -> list[list[dict[str, str]]]:
        return list(self.prompt_table["messages"].to_pylist())

    @cached_property
    def prompts(self) -> list[str]:
        """The texts of the turns before the reply, one a line."""
        return ["\n".join(m["content"] for m in messages) for messages in self.messages]

    @cached_property
    def replies(self) -> list[str]:
        return [""] * len(self) if self.completions is None else list(self.completions.to_pylist())

    @cached_property
    def texts(self) -> list[str]:
        if self.part == "reply":
            return self.replies
        if self.part == "prompt":
            return self.prompts
        return [f"{prompt}\n{reply}" for prompt, reply in zip(self.prompts, self.replies, strict=True)]


@dataclass(frozen=True)
class Corpus:
    """All rows of a prompt set that have a rollout, read again at each pass and never held in memory as a whole.

    `models` maps the names of a filter's model settings (model, reference) to folders; `scratch` survives an interruption of
    the step, for answers that cost money or time.
    """

    prompts: Path  # prompts.parquet
    rollouts: Path | None  # rollouts.parquet of one sample; None: prompts alone
    part: str = "reply"
    models: dict[str, Path] = field(default_factory=dict)
    scratch: Path | None = None
    chunk: int = CHUNK

    @cached_property
    def has_rollout(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each prompt of the set has a usable rollout: (prompts,)."""
        if self.rollouts is None:
            return np.ones(pq.read_metadata(self.prompts).num_rows, bool)
        index = pq.read_table(self.rollouts, columns=["content"])["content"]
        return np.asarray(index.is_valid().to_numpy(zero_copy_only=False))

    @property
    def count(self) -> int:
        """Rows that have a rollout, over all chunks."""
        return int(self.has_rollout.sum())

    @property
    def groups(self) -> int:
        """Row groups of the tables, which all have the same number of rows but the last."""
        return int(pq.read_metadata(self.prompts).num_row_groups)

    def group(self, number: int) -> Rows:
        """Return the rows that have a rollout in one row group: what a worker process reads by itself."""
        table = pq.ParquetFile(self.prompts).read_row_group(number)
        if self.rollouts is None:
            return Rows(table, None, self.part)
        completions = pq.ParquetFile(self.rollouts).read_row_group(number, ["completion"])["completion"]
        return _with_rollout(table, completions, self.part)

    def chunks(self) -> Iterator[Rows]:
        """Yield the rows that have a rollout, in the order of their prompt_ids."""
        prompts = tables_of(self.prompts, rows=self.chunk)
        if self.rollouts is None:
            yield from (Rows(table, None, self.part) for table in prompts)
            return
        rollouts = tables_of(self.rollouts, ["completion"], self.chunk)
        for table, found in zip(prompts, rollouts, strict=True):
            yield _with_rollout(table, found["completion"], self.part)


def _with_rollout(table: pa.Table, completions: pa.ChunkedArray, part: str) -> Rows:
    usable = completions.is_valid()
    return Rows(table.filter(usable), completions.filter(usable), part)
