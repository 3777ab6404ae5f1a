"""CLAIM: which process works on a step. Created exclusively, replaced atomically, with a heartbeat.

Two processes that share a file system never run one step at the same time: the second waits until the first is done, or takes
over when the claim is dead (its process is gone, or its heartbeat stopped). A job that the cluster started again takes over
from its earlier self at once: the cluster says that it is gone, and if that is not true (a node that only lost its connection)
the earlier one ends itself when it sees that its claim was taken.
"""

import json
import os
import signal
import socket
import sys
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
UNREADABLE_TRIES = 20  # then a claim that cannot be read is one that a crashed machine left
FENCED = 75  # exit code of a process whose claim was taken over


def read_claim(directory: Path) -> dict[str, Any] | None:
    """Return the claim on a step directory, or None if there is none (or it cannot be read)."""
    return _read(directory / "CLAIM")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        claim: dict[str, Any] = json.loads(path.read_text())
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


def _is_earlier_self(claim: dict[str, Any]) -> bool:
    """Tell whether the claim is of this Slurm job, before the cluster started it again."""
    mine, restarts = _slurm_job()
    return mine is not None and claim["job"] == mine and claim["restarts"] < restarts


def _slurm_job() -> tuple[str | None, int]:
    return os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _end_earlier_self(claim: dict[str, Any]) -> None:
    """Return when the process of a claim that was taken over has ended."""
    if claim["host"] != socket.gethostname():
        time.sleep(2 * HEARTBEAT_SECONDS)  # it looks at its claim at each heartbeat
        return
    if _process_runs(claim["pid"], claim["started"]):
        os.kill(claim["pid"], signal.SIGKILL)
    while _process_runs(claim["pid"], claim["started"]):
        time.sleep(0.05)


@contextmanager
def claimed(directory: Path, attempt: int) -> Iterator[bool]:
    """Hold the claim on a step; yields False, without holding it, if another live process does."""
    token = uuid.uuid4().hex
    job, restarts = _slurm_job()
    claim = {
        "token": token,
        "owner": os.environ.get("USER", str(os.getuid())),
        "job": job,
        "restarts": restarts,
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
    """Take a step that nobody claims, or whose claim is dead or of this job's earlier self."""
    for _ in range(UNREADABLE_TRIES):
        if _create(directory / "CLAIM", claim):
            return True
        if (holder := read_claim(directory)) is not None:
            break
        time.sleep(0.05)  # it was released just now
    else:
        holder = {"token": "unreadable", "job": None, "host": "", "heartbeat": 0.0}
    earlier = _is_earlier_self(holder)
    if (is_live(holder) and not earlier) or not _succeed(directory, claim, holder["token"]):
        return False
    if earlier:
        _end_earlier_self(holder)
    return True


def _succeed(directory: Path, claim: dict[str, Any], dead: str) -> bool:
    """Replace a dead claim, given by its token; tell whether that was done.

    Whoever creates the file that is named after a dead claim's token is its only successor, however long others that saw the
    dead claim too were asleep. A successor that died itself has a successor in the same way.
    """
    chain, path = [dead], directory / f".CLAIM.after.{dead}"
    while not _create(path, claim):
        successor = _read(path)
        if successor is None or is_live(successor):
            return False
        chain.append(successor["token"])
        path = directory / f".CLAIM.after.{successor['token']}"
    now = read_claim(directory)
    is_dead = now["token"] in chain if now is not None else (directory / "CLAIM").exists() and dead == "unreadable"
    if is_dead:
        _replace(directory, claim)
        for token in chain[:-1]:
            (directory / f".CLAIM.after.{token}").unlink(missing_ok=True)
    path.unlink(missing_ok=True)  # only now: who comes later sees that the dead claim is gone
    return is_dead


def _create(path: Path, claim: dict[str, Any]) -> bool:
    """Create a claim's file with its whole content; False if it is there already."""
    temporary = path.with_name(f".CLAIM.{claim['token']}")
    try:
        temporary.write_text(json.dumps(claim))
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _replace(directory: Path, claim: dict[str, Any]) -> None:
    temporary = directory / f".CLAIM.{claim['token']}"
    temporary.write_text(json.dumps(claim))
    os.replace(temporary, directory / "CLAIM")


def _beat(directory: Path, claim: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        now = read_claim(directory)
        if now is None:
            return
        if now["token"] != claim["token"]:
            print(f"{directory.name}: another process took this step over; this one ends", file=sys.stderr, flush=True)
            os._exit(FENCED)  # whatever the step is doing: two processes must not write into one directory
        claim["heartbeat"] = time.time()
        _replace(directory, claim)
