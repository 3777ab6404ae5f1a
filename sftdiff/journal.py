"""An append-only file of paid work: key -> JSON record, one line each, which a killed process leaves readable.

Lines are `{"start": key, "most": dollars}` before a request, `{"key": key, "record": ...}` with its result, and `{"drop": key}`
where a request ended without one. What was started and never ended was in flight when a process died, and may have been paid.
Only keys and places in the file are held in memory (about 250 bytes a key); records are read from the file when asked for.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from sftdiff.errors import SftdiffError

Key = str | tuple[str | int, ...]
SYNC_SECONDS = 1.0  # what a crash of the machine (not of the process) can lose
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a Lustre that is mounted without flock


class Journal:
    """The records of one file. `in_flight` is how many requests had started and not ended when the last process ended."""

    def __init__(self, path: Path) -> None:
        """Open or create a journal and cut off a torn last line.

        Raise SftdiffError if a line is damaged or another process has the journal open.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._places: dict[Key, int] = {}
        self._open: dict[Key, float] = {}
        self._end, self._synced = 0, time.monotonic()
        self.lost, self.lost_dollars = 0, 0.0  # requests that started and never ended, over the journal's whole life
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._file)
            raise
        self.in_flight = len(self._open)
        self.lost += len(self._open)
        self.lost_dollars += sum(self._open.values())
        self._open.clear()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SftdiffError(f"{self.path}: another process writes to it; wait until that one has ended") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    def _load(self) -> None:
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, self._end)  # the process died while it wrote this line
                    return
                try:
                    self._note(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise SftdiffError(
                        f"{self.path}, line {number}, is damaged: delete this line (its row is then made again), or the file"
                    ) from None
                self._end += len(line)

    def _note(self, entry: dict[str, Any]) -> None:
        """Take one line, which begins at `_end`, into account."""
        if "start" in entry:
            key = _as_key(entry["start"])
            if key in self._open:  # an earlier process died over it
                self.lost, self.lost_dollars = self.lost + 1, self.lost_dollars + self._open[key]
            self._open[key] = float(entry["most"])
        elif "drop" in entry:
            self._open.pop(_as_key(entry["drop"]), None)
        else:
            key, _ = _as_key(entry["key"]), entry["record"]
            self._open.pop(key, None)
            self._places[key] = self._end

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: Key) -> Any | None:
        """Return the last record of a key, or None if it has none."""
        if (place := self._places.get(key)) is None:
            return None
        with self.path.open("rb") as stream:
            stream.seek(place)
            return json.loads(stream.readline())["record"]

    def items(self) -> Iterator[tuple[Key, Any]]:
        """Yield each key with its last record, in the order of the file."""
        with self.path.open("rb") as stream:
            for key, place in sorted(self._places.items(), key=lambda item: item[1]):
                stream.seek(place)
                yield key, json.loads(stream.readline())["record"]

    def start(self, key: Key, most: float = 0.0) -> None:
        """Note that a request is about to be sent, which costs at most `most` dollars."""
        self._append({"start": key, "most": most})

    def write(self, key: Key, record: Any) -> None:
        """Add the result for a key; an earlier one is replaced."""
        self._append({"key": key, "record": record})

    def drop(self, key: Key) -> None:
        """Note that a started request ended without a result and without cost."""
        self._append({"drop": key})

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        written = os.write(self._file, line)
        if written < len(line):  # the disk is full: leave no torn line before those of a later write
            os.ftruncate(self._file, self._end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._note(json.loads(line))
        self._end += len(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fdatasync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _as_key(value: Any) -> Key:
    """Return a key as it was before JSON made a list of it. Raise TypeError for what is no key."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(part, str | int) for part in value):
        raise TypeError("not a key")
    return tuple(value)


def read_records(path: Path, wanted: Collection[Key]) -> dict[Key, Any]:
    """Return the last records of the wanted keys in a journal that another process may be writing to.

    It is read without a lock, and nothing is changed: a line that is torn, being written or damaged is passed over.
    """
    found = dict[Key, Any]()
    with path.open("rb") as stream:
        for line in stream:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                entry = json.loads(line)
                if "key" in entry and (key := _as_key(entry["key"])) in wanted:
                    found[key] = entry["record"]
    return found
