"""What sftdiff asks of Slurm besides submitting: the queue, the limits, cancelling. Needs no accounting database."""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sftdiff.errors import SftdiffError

TIMEOUT_SECONDS = 60
ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
# What a user has set for a command of Slurm's in general, such as SQUEUE_STATES, must not change what we see or cancel.
FOREIGN = ("SQUEUE_", "SCANCEL_", "SINFO_", "SACCTMGR_")
MARK = "sftdiff:"  # begins the comment of every job of ours; the chunk's id follows


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm has not ended: `key` is the array's id and index ("12_3") or the id, `raw` the id of this one job."""

    key: str
    raw: str
    running: bool
    reason: str  # why it is pending
    chunk: str  # from its comment


def call(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a Slurm command and return what it prints; raises SftdiffError with its own words when it fails."""
    if shutil.which(command[0]) is None:
        raise SftdiffError(f"there is no {command[0]} on this machine: hydra/launcher=slurm runs where Slurm's commands are")
    if (conf := os.environ.get("SLURM_CONF")) and not Path(conf).is_file():  # Slurm would look for it for a minute
        raise SftdiffError(f"SLURM_CONF is {conf}, and there is no such file: start that cluster, or unset SLURM_CONF")
    kept = {k: v for k, v in (os.environ if environment is None else environment).items() if not k.startswith(FOREIGN)}
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=kept)
    except subprocess.TimeoutExpired:
        raise SftdiffError(f"{command[0]} did not answer within {TIMEOUT_SECONDS} s: is its controller up?") from None
    if run.returncode:
        raise SftdiffError(f"{' '.join(command[:2])}: {' '.join((run.stderr or run.stdout).split())[:400]}")
    return run.stdout


def queue(ids: Iterable[str] | None = None) -> dict[str, QueuedJob]:
    """Return the jobs that have not ended, by key: those of the given (array) ids, or all of ours."""
    wanted = sorted(set(ids)) if ids is not None else None
    if wanted == []:
        return {}
    which = ["--me"] if wanted is None else [f"--jobs={','.join(wanted)}"]
    try:
        text = call("squeue", "--noheader", "--array", "--format=%F|%K|%A|%T|%r|%k", *which)
    except SftdiffError as error:
        if wanted is not None and "Invalid job id" in str(error):  # all of them ended long ago
            return {}
        raise
    jobs = [_parse(line) for line in text.splitlines()]
    return {job.key: job for job in jobs if job is not None}


def _parse(line: str) -> QueuedJob | None:
    array, index, raw, state, reason, comment = line.split("|", 5)
    if state in ENDED:
        return None
    key = array if index == "N/A" else f"{array}_{index}"
    chunk = comment.removeprefix(MARK).partition(" ")[0] if comment.startswith(MARK) else ""
    return QueuedJob(key, raw, state not in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"), reason, chunk)


@cache
def max_array_size() -> int:
    """Return how many tasks an array may have on this cluster."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return max(int(found[1]) - 1, 1) if found else 1000  # indices go up to MaxArraySize - 1


def submit_limit() -> int | None:
    """Return how many jobs this user may have in the queue, as the accounting database says; None without a limit."""
    if shutil.which("sacctmgr") is None:
        return None
    which = (f"user={getpass.getuser()}", "format=MaxSubmitJobs,GrpSubmitJobs")
    try:
        text = call("sacctmgr", "--noheader", "--parsable2", "show", "association", *which)
    except SftdiffError:
        return None
    limits = [int(field) for line in text.splitlines() for field in line.split("|") if field.isdigit()]
    return min(limits) if limits else None


def cancel(keys: Sequence[str]) -> None:
    """Cancel jobs by key."""
    for start in range(0, len(keys), 200):  # a command line has an end
        call("scancel", *keys[start : start + 200])


def without_job_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what Slurm set for the surrounding job: sbatch and srun would take it for their own."""
    return {k: v for k, v in environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "SLURMD_"))}


def inside_job() -> bool:
    return "SLURM_JOB_ID" in os.environ


def own_key() -> str:
    """Return the key of the job that this process runs in.

    SLURM_JOB_ID will not do: that of an array's last task is the id of the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
