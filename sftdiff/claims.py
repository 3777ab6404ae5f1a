"""CLAIM: which process works on a step. Created exclusively, replaced atomically, with a heartbeat.

Two processes that share a file system never run one step at the same time: the second waits until the first is done, or takes
over when the claim is dead (its process is gone, or its heartbeat stopped).
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 10.0
# A heartbeat that is this old belongs to a dead process: long enough for a stalled network file system.
DEAD_AFTER_SECONDS = 120.0


def read_claim(directory: Path) -> dict[str, Any] | None:
    """Return the claim on a step directory, or None if there is none (or it is being replaced)."""
    try:
        claim: dict[str, Any] = json.loads((directory / "CLAIM").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return claim


def is_live(claim: dict[str, Any]) -> bool:
    """Tell whether the claim's process is at work: by pid on this host, by heartbeat on another."""
    if claim["host"] == socket.gethostname():
        return _process_runs(claim["pid"], claim["started"])
    return bool(time.time() - claim["heartbeat"] < DEAD_AFTER_SECONDS)


def _process_runs(pid: int, started: str) -> bool:
    return process_start(pid) == started


def process_start(pid: int) -> str:
    """Return the kernel's start time of a process, so that a reused pid is not taken for it; "" if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


@contextmanager
def claimed(directory: Path, attempt: int) -> Iterator[bool]:
    """Hold the claim on a step; yields False, without holding it, if another live process does."""
    token = uuid.uuid4().hex
    claim = {
        "token": token,
        "owner": os.environ.get("USER", str(os.getuid())),
        "job": os.environ.get("SLURM_JOB_ID"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "attempt": attempt,
        "heartbeat": time.time(),
    }
    if not _take(directory, claim):
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(directory, claim, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        if (now := read_claim(directory)) and now["token"] == token:
            (directory / "CLAIM").unlink(missing_ok=True)


def _take(directory: Path, claim: dict[str, Any]) -> bool:
    try:
        _write(directory, claim, exclusive=True)
        return True
    except FileExistsError:
        holder = read_claim(directory)
    if holder is not None and is_live(holder):
        return False
    _write(directory, claim, exclusive=False)
    # Two processes may take over a dead claim at once: the last to replace the file has it.
    time.sleep(0.05)
    now = read_claim(directory)
    return now is not None and now["token"] == claim["token"]


def _write(directory: Path, claim: dict[str, Any], exclusive: bool) -> None:
    temporary = directory / f".CLAIM.{claim['token']}"
    try:
        temporary.write_text(json.dumps(claim))
        if exclusive:
            os.link(temporary, directory / "CLAIM")  # fails if there is one; the content is complete from the start
        else:
            os.replace(temporary, directory / "CLAIM")
    finally:
        temporary.unlink(missing_ok=True)


def _beat(directory: Path, claim: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        now = read_claim(directory)
        if now is None or now["token"] != claim["token"]:
            return
        claim["heartbeat"] = time.time()
        _write(directory, claim, exclusive=False)
