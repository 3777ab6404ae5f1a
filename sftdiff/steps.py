"""Run steps: `python -m sftdiff.steps DIRECTORY...`, on a compute node or in the local worker.

Every executor runs the same `run_step(directory)`. What a step does is in its config.yaml; the function that does it is looked up
by kind, so that this module imports neither torch nor Hydra.
"""

import contextlib
import errno
import importlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sftdiff.claims import claimed
from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.provenance import provenance
from sftdiff.ranks import await_first_rank, first_failure, is_first_rank, place, rank, tell_ranks
from sftdiff.records import (
    NOT_OUTPUTS,
    StepRecord,
    load_record,
    read_done,
    state,
    verify_outputs,
    write_done,
    write_json,
    write_record,
)

# kind -> module:function(Step) -> summary dict
KINDS = {
    "student": "sftdiff.students:run_student",
    "prompts": "sftdiff.prompts:run_prompts",
    "rollouts": "sftdiff.teachers:run_rollouts",
    "scores": "sftdiff.scores:run_scores",
    "mixture": "sftdiff.mixture:run_mixture",
    "pack": "sftdiff.pack:run_pack",
    "train": "sftdiff.sft:run_train",
    "sample": "sftdiff.sample:run_sample",
    "judge": "sftdiff.judge:run_judge",
    "report": "sftdiff.report:run_report",
}
POLL_SECONDS = 0.5
TOLD_EVERY_SECONDS = 0.2
PATIENCE_SECONDS = 120.0  # of a rank that fails, with a first rank that has not begun


class Step:
    """A running step: its record, its verified inputs, and its progress."""

    def __init__(self, record: StepRecord) -> None:
        self.record = record
        self.directory = record.directory
        self.config = record.config
        self.read: dict[str, str] = {}
        self.verified: dict[str, set[str]] = {}
        self.told = 0.0  # when progress was last written

    def input(self, name: str, *only: str) -> Path:
        """Return the directory of an input step, after checking that it is done and (or `only` these files) undamaged."""
        directory = self.record.input_directory(name)
        done = read_done(directory)
        if done is None:
            raise SftdiffError(f"step {self.record.id} needs {directory.name}, which is not done")
        unverified = (set(only) or set(done["outputs"])) - self.verified.setdefault(directory.name, set())
        verify_outputs(directory, done, unverified)
        self.verified[directory.name] |= unverified
        self.read[directory.name] = done["content"]
        return directory

    def progress(self, done: float, total: float, unit: str, per_second: float | None = None) -> None:
        """Tell how far the step is, and how fast it gets on (in `unit` a second); the executors show it."""
        now = time.time()
        if is_first_rank() and (done >= total or now - self.told >= TOLD_EVERY_SECONDS):
            self.told = now  # a small student takes hundreds of optimizer steps a second, and a file for each is a tenth of it
            shown = {"done": done, "total": total, "unit": unit, "per_second": per_second, "time": now}
            write_json(self.directory / "progress.json", shown)


def run_step(directory: Path, runtime: dict[str, Any] | None = None) -> str:
    """Run one step and return "done", "failed" or "blocked"; a step that is done already is left as it is.

    `runtime` are the settings without influence on the result (ZeRO stage, tracker) that this job was submitted with; another
    sweep with the same step may have written its own into config.yaml since then. Only the first rank claims the step and writes
    its records; the other ranks wait for its decision, and run the same function beside it.
    """
    check_code()
    record = load_record(directory, runtime)
    if not is_first_rank():
        attempt = await_first_rank(directory)
        return _join(Step(record), attempt) if attempt else "done"
    while True:
        if state(directory) == "done":
            tell_ranks(directory, 0)
            _mirror(record, again=True)
            return "done"
        attempt = _next_attempt(directory)
        with claimed(directory, attempt) as mine:
            # It may have become done between the look at its state and the claim.
            if mine and state(directory) != "done":
                if runtime is not None:
                    write_record(record)
                return _attempt(Step(record), attempt)
        if not mine:
            time.sleep(POLL_SECONDS)  # somebody else runs it: wait for the outcome, or for the claim


def _attempt(step: Step, attempt: int) -> str:
    directory = step.directory
    _clear(directory)
    log = directory / "logs" / f"attempt_{attempt}"
    started = time.time()
    try:
        blocked = [i for i in set(step.record.inputs.values()) if read_done(directory.parent / i) is None]
        if blocked and step.record.kind != "report":
            tell_ranks(directory, 0)
            return _fail(step, f"an input is missing: {', '.join(sorted(blocked))}", "blocked")
        from sftdiff.files import check_unchanged  # brings pyarrow, which the status command has no time for

        check_unchanged(step.record.files)
        log.parent.mkdir(exist_ok=True)
        tell_ranks(directory, attempt)
        with _output_to(log):
            write_json(directory / "provenance.json", provenance(attempt))
            summary = _function(step.record.kind)(step)
        write_done(step.record, step.read, summary, started)
    except Exception as error:
        message = _explain(error, log)
        _log_end(log, "failed")
        return _fail(step, message)
    _log_end(log, "done")
    (directory / "progress.json").unlink(missing_ok=True)
    _mirror(step.record)
    return "done"


def _join(step: Step, attempt: int) -> str:
    """Run a step's function on a rank that is not the first."""
    log = step.directory / "logs" / f"attempt_{attempt}_rank_{rank()}"
    try:
        with _output_to(log):
            _function(step.record.kind)(step)
    except Exception as error:
        return _fail(step, _explain(error, log))
    return "done"


def _explain(error: Exception, log: Path) -> str:
    """Return an error's message for FAILED; what is not meant for users gets its stack trace into the log."""
    if isinstance(error, SftdiffError):
        return str(error)
    _log_traceback(log)
    if isinstance(error, OSError):
        return describe_os_error(error)
    full = "No space left on device" in str(error)  # as safetensors' and Arrow's own exceptions say it
    return describe_os_error(OSError(errno.ENOSPC, "")) if full else f"{type(error).__name__}: {error} (full trace: {log})"


def _fail(step: Step, message: str, outcome: str = "failed") -> str:
    record_failure(step.directory, message, outcome)
    print(f"{step.record.id}: {place()}{message}", file=sys.stderr, flush=True)
    return outcome


def record_failure(directory: Path, message: str, outcome: str = "failed") -> None:
    """Write FAILED. Of several ranks the first to fail is the cause: what the others see is that it is gone."""
    with contextlib.suppress(OSError):  # on a full disk the outcome alone must do
        if not first_failure(directory / "FAILED"):
            write_json(directory / "FAILED", {"error": f"{place()}{message}", "outcome": outcome, "time": time.time()})


def check_code() -> None:
    """Raise SftdiffError if this process runs other code than the snapshot that its job was submitted with."""
    snapshot = os.environ.get("SFTDIFF_CODE")
    for name, module in list(sys.modules.items()) if snapshot else ():
        file = getattr(module, "__file__", None)
        ours = name.partition(".")[0] in ("sftdiff", "launch")
        if ours and file and not Path(file).resolve().is_relative_to(Path(str(snapshot)).resolve()):
            raise SftdiffError(f"{name} was imported from {file}, not from the job's snapshot of the code, {snapshot}: "
                               "look for lines that change PYTHONPATH in the site's env.sh")  # fmt: skip


def _log_end(log: Path, outcome: str) -> None:
    """State at the end of an attempt's log how it ended; an attempt that was killed has no such line."""
    with contextlib.suppress(OSError), log.open("a") as stream:
        stream.write(f"\nsftdiff: {outcome} at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")


def _log_traceback(log: Path) -> None:
    with contextlib.suppress(OSError), log.open("a") as stream:
        traceback.print_exc(file=stream)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()


def _mirror(record: StepRecord, again: bool = False) -> None:
    """Write the step's W&B run; for a step that was done before (`again`) only if it is not complete. Never fails the step."""
    if record.runtime.get("track", {}).get("mode", "off") != "off":
        from sftdiff.track import complete_mirror, mirror_step

        (complete_mirror if again else mirror_step)(record)


def _function(kind: str) -> Callable[[Step], dict[str, Any]]:
    module, _, name = KINDS[kind].partition(":")
    function: Callable[[Step], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return function


def _next_attempt(directory: Path) -> int:
    logs = directory / "logs"
    return 1 + sum("_rank_" not in path.name for path in logs.glob("attempt_*")) if logs.exists() else 1


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


def outcome_of(directory: Path, runtime: dict[str, Any] | None = None) -> str:
    """Run a step as run_step does; an error around it (a damaged record, no permission for the claim) is one line, no trace."""
    try:
        return run_step(directory, runtime)
    except (SftdiffError, OSError) as error:
        message = describe_os_error(error) if isinstance(error, OSError) else str(error)
        print(message, file=sys.stderr, flush=True)
        if not is_first_rank():  # the first rank would only see that this one is gone
            with contextlib.suppress(TimeoutError):  # and clears what was recorded before it began
                await_first_rank(directory, PATIENCE_SECONDS)
            record_failure(directory, message)
        return "failed"


def serve() -> None:
    """Run the steps whose directories are read from stdin, one a line; answer with one JSON line each on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        directory = Path(line.strip())
        answers.write(json.dumps({"step": directory.name, "outcome": outcome_of(directory)}) + "\n")
        answers.flush()


def main(arguments: list[str]) -> int:
    """Run the given steps in order; return 1 if one did not end as done."""
    if arguments == ["--serve"]:
        serve()
        return 0
    outcomes = [outcome_of(Path(argument)) for argument in arguments]
    return 0 if all(outcome == "done" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
