"""Tables in the order of their prompt_ids: in memory and spilled to disk alike, and in row groups that are aligned."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftdiff import sorting
from sftdiff.sorting import BUCKETS, AlignedWriter, SortedRows, id_text, ids_of, texts_of

SCHEMA = pa.schema([("prompt_id", pa.string()), ("source", pa.string()), ("n", pa.int32())])
PROPERTY = settings(max_examples=40)
numbers = st.integers(0, 2**64 - 1) | st.integers(0, 3) | st.integers(2**64 - 3, 2**64 - 1)
row_lists = st.lists(st.tuples(numbers, st.sampled_from("abc")), max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sorted")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "BATCH", 3)


def table_of(rows: list[tuple[int, str]], folder: Path, in_memory: int, then: tuple[str, ...] = ("source",)) -> pa.Table:
    """Return the rows as SortedRows gives them back, all tables joined; each of the tables is sorted by itself."""
    with SortedRows(SCHEMA, folder, then, in_memory) as collected:
        for number, (key, source) in enumerate(rows):
            collected.add({"prompt_id": id_text(key), "source": source, "n": number})
        tables = list(collected.tables())
        assert (len(tables) == BUCKETS) == bool(collected.writers)
        assert pa.concat_tables(collected.tables()) == pa.concat_tables(tables)  # it can be read twice
        return pa.concat_tables(tables)


@given(st.lists(numbers, max_size=20), st.data())
@PROPERTY
def test_texts_of_and_ids_of_are_inverse(values: list[int], data: st.DataObject) -> None:
    ids = np.array(values, np.uint64)
    texts = texts_of(ids)
    assert texts.to_pylist() == [f"{value:016x}" for value in values]
    assert texts.validate(full=True) is None
    assert ids_of(texts).tolist() == values
    start = data.draw(st.integers(0, len(values)))
    assert ids_of(texts.slice(start, 3)).tolist() == values[start : start + 3]
    chunked = pa.chunked_array([texts.slice(0, start), texts.slice(start)], pa.string())
    assert ids_of(chunked).tolist() == values
    assert [id_text(number) for number in ids] == texts.to_pylist()


def test_no_ids_at_all() -> None:
    assert ids_of(pa.chunked_array([], pa.string())).tolist() == []
    assert texts_of(np.empty(0, np.uint64)).to_pylist() == []


@given(st.lists(numbers, max_size=20))
@PROPERTY
def test_the_order_of_the_numbers_is_that_of_the_texts(values: list[int]) -> None:
    by_text = sorted(texts_of(np.array(values, np.uint64)).to_pylist())
    assert by_text == [id_text(number) for number in np.sort(np.array(values, np.uint64))]


@given(rows=row_lists)
@settings(max_examples=25)
def test_rows_that_were_spilled_are_those_that_were_not(folder: Path, rows: list[tuple[int, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "BATCH", 3)
        spilled, kept = (table_of(rows, folder, in_memory) for in_memory in (1, 10**9))
        assert spilled.combine_chunks() == kept.combine_chunks()
        order = sorted((id_text(key), source) for key, source in rows)
        assert list(zip(kept["prompt_id"].to_pylist(), kept["source"].to_pylist(), strict=True)) == order
        assert sorted(kept["n"].to_pylist()) == list(range(len(rows)))
        assert list(folder.iterdir()) == []


def test_rows_that_were_spilled_are_in_order_over_all_tables(tmp_path: Path, small_batches: None) -> None:
    rows = [(int(number), "a") for number in np.random.default_rng(0).integers(0, 2**64, 500, np.uint64)]
    found = ids_of(table_of(rows, tmp_path, 1)["prompt_id"])
    assert (np.diff(found.astype(object)) > 0).all()
    assert len(found) == 500


def test_rows_lie_on_disk_while_they_are_sorted_and_go_when_it_ends_or_fails(tmp_path: Path, small_batches: None) -> None:
    def fill(collected: SortedRows) -> None:
        for number in range(9):
            collected.add({"prompt_id": id_text(number), "source": "a", "n": number})

    with SortedRows(SCHEMA, tmp_path, in_memory=1) as collected:
        fill(collected)
        assert len(list(tmp_path.iterdir())) == BUCKETS
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), SortedRows(SCHEMA, tmp_path, in_memory=1) as collected:
        fill(collected)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_memory_is_counted_over_batches_and_begins_anew_after_each_time_that_rows_are_spilled(
    tmp_path: Path, small_batches: None
) -> None:
    with SortedRows(SCHEMA, tmp_path, in_memory=10_000) as collected:
        most = 0
        for number in range(2000):
            collected.add({"prompt_id": id_text(number), "source": "x" * 50, "n": number})
            most = max(most, collected.bytes)
        assert collected.writers
        assert 9_000 < most <= 10_000


# Row groups


@pytest.fixture
def groups_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "GROUP", 5)


def tables_of(sizes: list[int]) -> Iterator[pa.Table]:
    start = 0
    for size in sizes:
        yield pa.table({"n": range(start, start + size), "other": ["x"] * size})
        start += size


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [([], []), ([0], []), ([5], [5]), ([4], [4]), ([1] * 11, [5, 5, 1]), ([23], [5] * 4 + [3]), ([3, 9, 0, 1, 7], [5] * 4)],
)
def test_row_groups_have_the_same_sizes_whatever_came_in(
    tmp_path: Path, groups_of_five: None, sizes: list[int], groups: list[int]
) -> None:
    schema = pa.schema([("n", pa.int32())])
    with AlignedWriter(tmp_path / "t.parquet", schema) as writer:
        for table in tables_of(sizes):
            writer.write(table)
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == groups
    assert file.schema_arrow == schema
    assert file.read()["n"].to_pylist() == list(range(sum(sizes)))


def test_the_sizes_that_came_in_leave_no_trace_in_the_file(tmp_path: Path, groups_of_five: None) -> None:
    """So that what a step wrote does not depend on how its rows were sorted."""
    contents = set[bytes]()
    for number, sizes in enumerate([[12], [1] * 12, [7, 5]]):
        with AlignedWriter(tmp_path / f"{number}.parquet", pa.schema([("n", pa.int64()), ("other", pa.string())])) as writer:
            for table in tables_of(sizes):
                writer.write(table)
        contents.add((tmp_path / f"{number}.parquet").read_bytes())
    assert len(contents) == 1


def test_an_error_while_writing_is_the_one_that_is_seen(tmp_path: Path) -> None:
    def fail() -> Any:
        with AlignedWriter(tmp_path / "t.parquet", pa.schema([("n", pa.int32())])) as writer:
            writer.write(pa.table({"n": [1]}))
            writer.writer.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
