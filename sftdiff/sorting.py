"""Tables in the order of their prompt_ids, larger than memory: rows are spread over files by first digits, and sorted there.

All tables that are aligned by position are written by AlignedWriter, so that they have the same row groups.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BUCKETS = 64
IN_MEMORY = 128 << 20  # bytes of rows that are kept before any are written to disk
GROUP = 8192  # rows of a Parquet row group
BATCH = 2048  # rows that are made into Arrow at a time
Ids = np.ndarray[Any, np.dtype[np.uint64]]


def ids_of(column: pa.Array | pa.ChunkedArray) -> Ids:
    """Return prompt_ids (16 hex digits) as numbers: (rows,) uint64, in the same order as the texts."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([_numbers(chunk) for chunk in chunks]) if chunks else np.empty(0, np.uint64)


def _numbers(array: pa.Array) -> Ids:
    fixed = array.cast(pa.binary()).cast(pa.binary(16))
    start = fixed.offset * 16
    digits = np.frombuffer(fixed.buffers()[1], np.uint8, len(fixed) * 16, start).reshape(-1, 16)
    values = np.where(digits < ord("a"), digits - ord("0"), digits - ord("a") + 10).astype(np.uint64)
    return np.asarray((values << np.arange(60, -4, -4, dtype=np.uint64)).sum(axis=1, dtype=np.uint64))


def id_text(number: int | np.integer[Any]) -> str:
    return f"{int(number):016x}"


def texts_of(ids: Ids) -> pa.Array:
    """Return prompt_ids as texts: the inverse of ids_of."""
    shifts = np.arange(60, -4, -4, dtype=np.uint64)
    digits = ((ids[:, None] >> shifts) & np.uint64(15)).astype(np.uint8)
    letters = np.frombuffer(b"0123456789abcdef", np.uint8)[digits]
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(letters.tobytes()))


class SortedRows:
    """Collects rows with a `prompt_id`, and gives them back in its order, as tables. Use as a context manager: it has files."""

    def __init__(self, schema: pa.Schema, folder: Path, then: Sequence[str] = (), in_memory: int = IN_MEMORY) -> None:
        self.schema, self.folder, self.then, self.in_memory = schema, folder, then, in_memory
        self.rows: list[dict[str, Any]] = []
        self.batches: list[pa.RecordBatch] = []
        self.bytes = 0
        self.files: list[Any] = []
        self.writers: list[Any] = []

    def __enter__(self) -> "SortedRows":
        return self

    def __exit__(self, *_: object) -> None:
        for item in (*self.writers, *self.files):
            with contextlib.suppress(Exception):  # of a disk that is full: the error that brought us here says so
                item.close()
        for number in range(BUCKETS):
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f".sort-{number:02d}.arrow"

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            batch = pa.RecordBatch.from_pylist(self.rows, schema=self.schema)
            self.rows = []
            self.batches.append(batch)
            self.bytes += batch.nbytes
        if self.bytes > self.in_memory:
            self._spill()

    def _spill(self) -> None:
        if not self.writers:
            self.files = [pa.OSFile(str(self._path(k)), "wb") for k in range(BUCKETS)]
            self.writers = [pa.ipc.new_stream(file, self.schema) for file in self.files]
        table = pa.Table.from_batches(self.batches).combine_chunks()
        self.batches, self.bytes = [], 0
        buckets = ids_of(table["prompt_id"]) >> np.uint64(58)
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
        for number in range(BUCKETS):
            chosen = order[bounds[number] : bounds[number + 1]]
            if len(chosen):
                self.writers[number].write_table(table.take(pa.array(chosen)))

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows in tables, sorted by prompt_id, within a table and from one to the next, and then by `then`."""
        self._flush()
        if not self.writers:
            yield self._sorted(pa.Table.from_batches(self.batches, self.schema))
            return
        if self.batches:
            self._spill()
        if self.files:  # once: the rows can be read again
            for item in (*self.writers, *self.files):
                item.close()
            self.files = []
        for number in range(BUCKETS):
            with pa.memory_map(str(self._path(number))) as source:
                yield self._sorted(pa.ipc.open_stream(source).read_all())

    def _sorted(self, table: pa.Table) -> pa.Table:
        keys = [(name, "ascending") for name in ("prompt_id", *self.then)]
        return table.take(pc.sort_indices(table, sort_keys=keys))


def tables_of(path: Path, columns: Sequence[str] | None = None, rows: int = GROUP) -> Iterator[pa.Table]:
    """Yield a table written by AlignedWriter in parts of at most `rows` rows, which are the same for all tables aligned with it.

    Row group by row group: pyarrow's iter_batches keeps what it has read in memory until the end of the file.
    """
    file = pq.ParquetFile(path)
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, columns)
        for start in range(0, table.num_rows, rows):
            yield table.slice(start, rows)


class AlignedWriter:
    """Writes a Parquet file with row groups of exactly GROUP rows, whatever sizes come in."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema, self.pending, self.rows = schema, list[pa.Table](), 0
        self.writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)

    def __enter__(self) -> "AlignedWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._write(whole=False)
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.writer.close()

    def write(self, table: pa.Table) -> None:
        self.pending.append(table.select(self.schema.names).cast(self.schema))
        self.rows += table.num_rows
        if self.rows >= GROUP:
            self._write(whole=True)

    def _write(self, whole: bool) -> None:
        if not self.rows:
            return
        table = pa.concat_tables(self.pending)
        end = table.num_rows - table.num_rows % GROUP if whole else table.num_rows
        self.writer.write_table(table.slice(0, end), row_group_size=GROUP)
        # A copy, so that the slice does not keep the whole table in memory.
        self.pending = [table.slice(end).combine_chunks()]
        self.rows = table.num_rows - end
