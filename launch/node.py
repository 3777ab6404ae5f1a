"""What a Slurm job runs, on the compute node: its steps, one after the other. Knows Slurm's variables; the steps do not.

`python -m launch.node CHUNK MAX_RESTARTS STATUS` runs in the job's script when srun has failed, and finds out why.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from launch.cluster import MARK, own_key
from launch.sweep import Submitted, load_sweep, read_chunk
from sftdiff.errors import SftdiffError
from sftdiff.ranks import is_first_rank
from sftdiff.records import load_record, read_done, write_json
from sftdiff.steps import outcome_of

DRIVER = "driver"  # the job that submits what the user's limit left over
ROUND = "round"  # the job that goes on with a diff when a round has ended
RESTARTED = "sftdiff: started again: "
CAUSE = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+)$")


class JobFailed(Exception):
    """Makes the job exit with a status other than 0; the steps have said why."""


class NodeJob:
    """The function that submitit runs in each task of a job."""

    def __call__(self, chunk_file: str, index: int) -> None:
        chunk = read_chunk(Path(chunk_file))
        runs = chunk.path.parents[3]
        set_rank_variables(chunk.ranks)
        if chunk.kind == DRIVER:
            go_on(runs, chunk)
            return
        if chunk.kind == ROUND:
            from launch.diff import next_on_slurm

            next_on_slurm(load_sweep(runs, chunk.path.parents[1].name))
            return
        steps = [runs / "steps" / step for step in chunk.jobs[index]["steps"]]
        if is_first_rank():
            announce(chunk, index, steps)
        runtimes = chunk.jobs[index]["runtime"]
        outcomes = {step.name: outcome_of(step, runtimes[step.name]) for step in steps}
        if chunk.kind == "report" and is_first_rank():
            from launch.run import copy_report

            copy_report(load_sweep(runs, chunk.path.parents[1].name))
        failed = [f"{step} {outcome}" for step, outcome in outcomes.items() if outcome != "done"]
        if failed:
            raise JobFailed(", ".join(failed))

    def checkpoint(self, chunk_file: str, index: int) -> Any:
        """Ask submitit to queue the job again with the same steps: near its time limit, or when it is preempted."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, chunk_file, index)


def go_on(runs: Path, chunk: Submitted) -> None:
    """Submit what the user's limit left over, as much as it has room for now; for the rest this job is queued again."""
    from launch.script import SubmitLimit
    from launch.submit import submit

    try:
        left = submit(load_sweep(runs, chunk.path.parents[1].name), is_driver=True).left
    except SubmitLimit as error:  # others' jobs count too, where the limit is an account's
        print(error, file=sys.stderr, flush=True)
        left = 1
    if left:
        subprocess.run(["scontrol", "requeue", own_key()], timeout=60, check=True)
        time.sleep(60)  # Slurm ends this process


def set_rank_variables(ranks: int) -> None:
    """Translate Slurm's variables into those that torch.distributed reads; one Slurm task is one rank.

    The port is not among them: the first rank looks for one that is free.
    """
    if ranks == 1:
        return
    found = int(os.environ["SLURM_NTASKS"])
    if found != ranks:
        raise SftdiffError(f"the job has {found} tasks and was submitted for {ranks} ranks")
    from submitit.slurm.slurm import SlurmJobEnvironment

    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks // int(os.environ["SLURM_JOB_NUM_NODES"])),
        MASTER_ADDR=SlurmJobEnvironment().hostnames[0],
    )


def announce(chunk: Submitted, index: int, steps: list[Path]) -> None:
    """Give the job the cell's name, and the W&B address of its main step as comment. Not worth failing for."""
    job, main = chunk.jobs[index], steps[0]
    name, address = job["name"], wandb_address(main, job["runtime"].get(main.name))
    comment = f"{MARK}{chunk.id} {address}".strip()
    command = ["scontrol", "update", f"jobid={own_key()}", f"jobname={name}", f"comment={comment}"]
    try:
        subprocess.run(command, timeout=30, check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"the job keeps its name: {error}", file=sys.stderr, flush=True)


def wandb_address(directory: Path, runtime: dict[str, Any] | None = None) -> str:
    """Return where W&B shows a step that runs with these settings, or where its offline record will lie."""
    from sftdiff.track import resolve_mode, run_id

    record = load_record(directory, runtime)
    track = {"mode": "off"} | record.runtime.get("track", {})
    mode = resolve_mode(track["mode"], os.environ)
    if mode == "online":
        url = urlsplit(os.environ.get("WANDB_BASE_URL", "https://wandb.ai").rstrip("/").replace("//api.wandb.ai", "//wandb.ai"))
        host = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()  # the queue is public, and a URL can hold a password
        entity = track.get("entity") or os.environ.get("WANDB_ENTITY")
        place = f"{quote(entity)}/{quote(track['project'])}" if entity else quote(track["project"])
        return f"{host}/{place}/runs/{run_id(record)}"
    return f"{directory / 'wandb'}" if mode == "offline" else ""


def ended(chunk_file: Path, max_restarts: int, status: int) -> int:
    """Look at a job whose srun has failed, and return the status that the job is to end with.

    If a process was killed, queue the job again, or record the loss. If its steps are all done, it did not fail: a warning of
    the time limit, for one, kills a process that is about to end.
    """
    chunk = read_chunk(chunk_file)
    steps = [chunk_file.parents[3] / "steps" / s for s in chunk.jobs[int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)]["steps"]]
    cause = killed(chunk)
    if cause is None and status > 128:
        cause = f"srun ended with status {status}"
    unfinished = [step for step in steps if read_done(step) is None]
    if steps and not unfinished:
        return 0
    if not cause or not unfinished or not is_running():
        return status
    restarts = restarts_after_kills(chunk)
    if restarts < max_restarts:
        print(f"{RESTARTED}{cause}", file=sys.stderr, flush=True)
        for step in unfinished:  # what the other ranks saw of it
            (step / "FAILED").unlink(missing_ok=True)
        subprocess.run(["scontrol", "requeue", own_key()], timeout=60, check=True)
        time.sleep(60)  # Slurm ends this script
    print(f"sftdiff: {cause}", file=sys.stderr, flush=True)
    again = f", and the job was started again {restarts} times already" if restarts else ""
    for step in unfinished:
        write_json(step / "FAILED", {"error": f"{cause}{again}", "outcome": "lost", "time": time.time()})
    return status


def killed(chunk: Submitted) -> str | None:
    """Return which rank was killed first and how, "" if the first to end ended by itself, None if srun has not said it."""
    lines = log_lines(chunk)
    starts = [number for number, line in enumerate(lines) if line.startswith("sftdiff: start ")]
    for line in lines[starts[-1] if starts else 0 :]:
        if found := CAUSE.match(line):
            node, ranks, how = found.groups()
            return "" if how.startswith("Exited with exit code") else f"rank {ranks} on {node} was ended by the system: {how}"
    return None


def log_lines(chunk: Submitted) -> list[str]:
    """Return the lines of this job's log, of all its starts."""
    log = chunk.logs / f"{own_key()}_0_log.err"
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def restarts_after_kills(chunk: Submitted) -> int:
    """Return how often this job was started again because a process was killed: Slurm counts time limits and preemptions too."""
    return sum(line.startswith(RESTARTED) for line in log_lines(chunk))


def is_running() -> bool:
    """Tell whether Slurm still takes this job for running: one that is cancelled or queued again is not ours to judge."""
    command = ["scontrol", "show", "job", own_key()]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    return "JobState=RUNNING" in text


if __name__ == "__main__":
    sys.exit(ended(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
