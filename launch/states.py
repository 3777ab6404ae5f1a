"""What became of each step of a sweep: its directory first, the queue second. Needs no accounting database."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cluster import QueuedJob
from launch.sweep import Submitted, Sweep
from sftdiff.claims import DEAD_AFTER_SECONDS, is_live, read_claim
from sftdiff.errors import SftdiffError
from sftdiff.records import read_done, read_json

# In the order in which a table shows them.
STATES = ("done", "running", "queued", "open", "stale", "failed", "blocked", "lost")
TO_REPEAT = ("failed", "lost", "blocked")  # what `retry` takes


@dataclass(frozen=True)
class StepState:
    """The state of one step; `note` says how far it is or what went wrong, `job` is its job in the queue or its last one."""

    state: str
    note: str = ""
    job: str = ""
    progress: dict[str, Any] | None = None


def step_states(sweep: Sweep, chunks: Iterable[Submitted], queue: Mapping[str, QueuedJob]) -> dict[str, StepState]:
    """Return the state of every step of a sweep.

    done; running (claimed by a live process); queued (its job has not come to it); open (not submitted); stale (done, with
    another content of an input); failed; blocked (an input failed, or is blocked or lost); lost (its job ended without a result).
    """
    chunks = list(chunks)
    jobs, mine = _last_jobs(chunks), {chunk.id for chunk in chunks}
    alive = {job.raw for job in queue.values()}
    queue = {key: job for key, job in queue.items() if job.chunk in mine}  # a new cluster counts its jobs from 1 again
    done = {step: _read_done(f"{sweep.runs}/steps/{step}") for step in sweep.steps}
    states: dict[str, StepState] = {}
    for step_id, step in sweep.steps.items():
        key = jobs.get(step_id, "")
        if (own := done[step_id]) is not None:
            states[step_id] = StepState("done" if _is_fresh(sweep, own, done) else "stale", job=key)
            continue
        states[step_id] = _not_done(sweep.directory(step_id), key, queue, alive)
        bad = [i for i in step.inputs.values() if i in states and states[i].state in TO_REPEAT]
        if bad and states[step_id].state in ("open", "lost", "blocked") and step_id != sweep.report:
            states[step_id] = StepState("blocked", f"needs {bad[0]}, which is {states[bad[0]].state}", key)
    return states


def _read_done(directory: str) -> dict[str, Any] | None:
    """Do what read_done does, several times as fast: it is most of what the status of thousands of steps costs."""
    try:
        with open(f"{directory}/DONE", "rb", buffering=0) as stream:  # noqa: PTH123
            done: dict[str, Any] = json.loads(stream.read())
            return done if {"content", "inputs", "absent"} <= done.keys() else read_done(Path(directory))
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        return read_done(Path(directory))  # which says how it is damaged


def _last_jobs(chunks: Iterable[Submitted]) -> dict[str, str]:
    """Return step id -> key of the job that it was last submitted with."""
    return {s: chunk.key(n) for chunk in chunks if chunk.job_id for n, job in enumerate(chunk.jobs) for s in job["steps"]}


def _is_fresh(sweep: Sweep, own: Mapping[str, Any], done: dict[str, dict[str, Any] | None]) -> bool:
    if any(_done(sweep, i, done) is not None for i in own["absent"]):
        return False
    now = ((content, _done(sweep, i, done)) for i, content in own["inputs"].items())
    return all(record is None or record["content"] == content for content, record in now)


def _done(sweep: Sweep, step_id: str, done: dict[str, dict[str, Any] | None]) -> dict[str, Any] | None:
    if step_id not in done:
        done[step_id] = _read_done(f"{sweep.runs}/steps/{step_id}")
    return done[step_id]


def _not_done(directory: Path, key: str, queue: Mapping[str, QueuedJob], alive: set[str]) -> StepState:
    claim = read_claim(directory)
    if claim is not None and _is_at_work(claim, alive):
        return StepState("running", *_progress(directory, key or str(claim["job"] or "")))
    if (job := queue.get(key)) is not None:
        return StepState("queued", "its job has begun" if job.running else job.reason, key)
    try:
        failed = read_json(directory / "FAILED")
    except FileNotFoundError:
        note = f"job {key} ended without a result" if key else ""
        return StepState("lost" if key or claim is not None else "open", note or ("its process is gone" if claim else ""), key)
    except SftdiffError as error:
        return StepState("failed", str(error), key)
    outcome = failed.get("outcome", "failed")
    return StepState(outcome if outcome in TO_REPEAT else "failed", str(failed["error"]), key)


def _is_at_work(claim: Mapping[str, Any], alive: set[str]) -> bool:
    """Tell whether a claim's process lives: for one of a Slurm job the queue knows, also for nodes that cannot be asked."""
    if claim["job"] is not None:
        return claim["job"] in alive and time.time() - claim["heartbeat"] < DEAD_AFTER_SECONDS
    return is_live(dict(claim))


def _progress(directory: Path, key: str) -> tuple[str, str, dict[str, Any] | None]:
    try:
        now = read_json(directory / "progress.json")
    except (FileNotFoundError, SftdiffError):
        return "", key, None
    rate = f", {now['per_second']:,.0f} {now['unit']}/s" if now.get("per_second") else ""
    return f"{now['done']:,.0f}/{now['total']:,.0f} {now['unit']}{rate}", key, now


def to_run(sweep: Sweep, states: Mapping[str, StepState]) -> list[str]:
    """Return the steps that are not done, and all that read one of them: what they read may change."""
    found: dict[str, None] = {}
    for step_id, step in sweep.steps.items():
        if states[step_id].state != "done" or any(i in found for i in step.inputs.values()):
            found[step_id] = None
    return list(found)
