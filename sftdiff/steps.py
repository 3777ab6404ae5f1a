"""Run steps: `python -m sftdiff.steps DIRECTORY...`, on a compute node or in the local worker.

Every executor runs the same `run_step(directory)`. What a step does is in its config.yaml; the function that does it is looked up
by kind, so that this module imports neither torch nor Hydra.
"""

import contextlib
import errno
import functools
import importlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sftdiff
from sftdiff.claims import claimed
from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.records import (
    NOT_OUTPUTS,
    StepRecord,
    load_record,
    read_done,
    state,
    verify_outputs,
    write_done,
    write_json,
)

# kind -> module:function(Step) -> summary dict
KINDS = {
    "student": "sftdiff.students:run_student",
    "rollouts": "sftdiff.prompts:run_rollouts",
    "scores": "sftdiff.filters:run_scores",
    "mixture": "sftdiff.mixture:run_mixture",
    "pack": "sftdiff.pack:run_pack",
    "train": "sftdiff.sft:run_train",
    "sample": "sftdiff.sample:run_sample",
    "judge": "sftdiff.judge:run_judge",
    "report": "sftdiff.report:run_report",
}
LIBRARIES = ("torch", "transformers", "deepspeed", "accelerate", "peft", "inspect-ai", "numpy", "scipy", "pyarrow")
POLL_SECONDS = 0.5


class Step:
    """A running step: its record, its verified inputs, and its progress."""

    def __init__(self, record: StepRecord) -> None:
        self.record = record
        self.directory = record.directory
        self.config = record.config
        self.read: dict[str, str] = {}

    def input(self, name: str) -> Path:
        """Return the directory of an input step, after checking that it is done and undamaged."""
        directory = self.record.input_directory(name)
        done = read_done(directory)
        if done is None:
            raise SftdiffError(f"step {self.record.id} needs {directory.name}, which is not done")
        if directory.name not in self.read:
            verify_outputs(directory, done)
            self.read[directory.name] = done["content"]
        return directory

    def progress(self, done: float, total: float, unit: str) -> None:
        """Tell how far the step is; the executors show it."""
        if is_first_rank():
            write_json(self.directory / "progress.json", {"done": done, "total": total, "unit": unit, "time": time.time()})


def is_first_rank() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def run_step(directory: Path) -> str:
    """Run one step and return "done", "failed" or "blocked"; a step that is done already is left as it is.

    Only the first rank claims the step and writes its records; the other ranks run the same function beside it.
    """
    record = load_record(directory)
    if not is_first_rank():
        _function(record.kind)(Step(record))
        return "done"
    while True:
        if state(directory) == "done":
            return "done"
        attempt = _next_attempt(directory)
        with claimed(directory, attempt) as mine:
            if mine:
                # It may have become done between the look at its state and the claim.
                return "done" if state(directory) == "done" else _attempt(Step(record), attempt)
        time.sleep(POLL_SECONDS)  # somebody else runs it: wait for the outcome, or for the claim


def _attempt(step: Step, attempt: int) -> str:
    directory = step.directory
    _clear(directory)
    log = directory / "logs" / f"attempt_{attempt}"
    started = time.time()
    try:
        blocked = [i for i in set(step.record.inputs.values()) if read_done(directory.parent / i) is None]
        if blocked and step.record.kind != "report":
            return _fail(step, f"an input is missing: {', '.join(sorted(blocked))}", "blocked")
        log.parent.mkdir(exist_ok=True)
        with _output_to(log):
            write_json(directory / "provenance.json", provenance(attempt))
            summary = _function(step.record.kind)(step)
        write_done(step.record, step.read, summary, started)
    except SftdiffError as error:
        return _fail(step, str(error))
    except OSError as error:
        _log_traceback(log)
        return _fail(step, describe_os_error(error))
    except Exception as error:
        _log_traceback(log)
        full = "No space left on device" in str(error)  # as safetensors' and Arrow's own exceptions say it
        message = describe_os_error(OSError(errno.ENOSPC, "")) if full else f"{type(error).__name__}: {error} (full trace: {log})"
        return _fail(step, message)
    (directory / "progress.json").unlink(missing_ok=True)
    _mirror(step.record)
    return "done"


def _fail(step: Step, message: str, outcome: str = "failed") -> str:
    with contextlib.suppress(OSError):  # on a full disk the outcome alone must do
        write_json(step.directory / "FAILED", {"error": message, "outcome": outcome, "time": time.time()})
    print(f"{step.record.id}: {message}", file=sys.stderr, flush=True)
    return outcome


def _log_traceback(log: Path) -> None:
    with contextlib.suppress(OSError), log.open("a") as stream:
        traceback.print_exc(file=stream)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()


def _mirror(record: StepRecord) -> None:
    """Write the step's W&B run. Never fails the step."""
    if record.runtime.get("track", {}).get("mode", "off") != "off":
        from sftdiff.track import mirror_step

        mirror_step(record)


def _function(kind: str) -> Callable[[Step], dict[str, Any]]:
    module, _, name = KINDS[kind].partition(":")
    function: Callable[[Step], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return function


def _next_attempt(directory: Path) -> int:
    logs = directory / "logs"
    return 1 + sum(1 for _ in logs.glob("attempt_*")) if logs.exists() else 1


def _clear(directory: Path) -> None:
    """Remove what an earlier attempt left, except its logs and the checkpoints that this one continues from."""
    for path in directory.iterdir():
        if path.name in ("DONE", "FAILED", "progress.json"):
            path.unlink(missing_ok=True)
        elif path.name not in NOT_OUTPUTS and not path.name.startswith(".CLAIM"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send everything that the step prints, in Python or below, to its log file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])


def provenance(attempt: int) -> dict[str, Any]:
    """Return where and with what a step runs. Environment variables are not recorded: they hold secrets."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "sftdiff": sftdiff.__version__,
        "code": str(Path(sftdiff.__file__).parent),
        "python": platform.python_version(),
        "libraries": versions,
        "host": socket.gethostname(),
        **git_state(Path(sftdiff.__file__).parent),
        "attempt": attempt,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@functools.cache
def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of a checkout and whether it has uncommitted changes; None where there is no checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _outcome(directory: Path) -> str:
    """Run a step; an error around it (a damaged record, no permission for the claim) is one line, not a stack trace."""
    try:
        return run_step(directory)
    except (SftdiffError, OSError) as error:
        message = describe_os_error(error) if isinstance(error, OSError) else str(error)
        print(message, file=sys.stderr, flush=True)
        return "failed"


def serve() -> None:
    """Run the steps whose directories are read from stdin, one a line; answer with one JSON line each on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        directory = Path(line.strip())
        answers.write(json.dumps({"step": directory.name, "outcome": _outcome(directory)}) + "\n")
        answers.flush()


def main(arguments: list[str]) -> int:
    """Run the given steps in order; return 1 if one did not end as done."""
    if arguments == ["--serve"]:
        serve()
        return 0
    outcomes = [_outcome(Path(argument)) for argument in arguments]
    return 0 if all(outcome == "done" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
