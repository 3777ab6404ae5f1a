"""Read rows from JSONL and Parquet files, and find the data that the package ships."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftdiff.errors import SftdiffError
from sftdiff.identity import file_sha256

EMBEDDED = "embedded://"
DATA = Path(__file__).parent / "data"


def resolve(path: str) -> Path:
    """Return the file that a config names; `embedded://NAME` is a file that the package ships."""
    found = DATA / path.removeprefix(EMBEDDED) if path.startswith(EMBEDDED) else Path(path).expanduser()
    if not found.is_file():
        raise SftdiffError(f"there is no file {found}" + (f" (from {path})" if path.startswith(EMBEDDED) else ""))
    return found


def check_unchanged(files: Mapping[str, str]) -> None:
    """Raise SftdiffError if a file that a step reads is not what it was when the step was planned ({path: SHA-256})."""
    for path, planned in files.items():
        if file_sha256(resolve(path)) != planned:
            raise SftdiffError(f"{path} was changed after this step was planned: run the same command again to plan anew")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for each row of a .jsonl or .parquet file; `place` is "FILE, line N" for messages."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    if path.suffix not in (".jsonl", ".json"):
        raise SftdiffError(f"{path}: expected a file that ends in .jsonl or .parquet")
    with path.open("rb") as stream:
        yield from _jsonl(path, stream)


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except UnicodeDecodeError as error:
        raise SftdiffError(f"{path}, after row {number}: not valid UTF-8 ({error.reason})") from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _jsonl(path: Path, stream: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        for number, raw in enumerate(stream, 1):
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")  # some editors begin a file with a byte order mark
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise SftdiffError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
            if re.search(r"\\u[dD]", line):
                json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
            yield f"{path}, line {number}", row
    except json.JSONDecodeError as error:
        raise SftdiffError(f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise SftdiffError(f"{path}, line {number}: not valid UTF-8 ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        raise SftdiffError(f"{path}, line {number}: not a readable row ({error})") from None


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns; a damaged one is an error that names it."""
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno:  # pyarrow's own errors about damage have no errno
        return error
    return SftdiffError(f"{path} is not a readable Parquet file ({error})")


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows as a Parquet file with the given schema."""
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
