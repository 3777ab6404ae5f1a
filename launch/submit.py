"""Submit a sweep to Slurm: chunks of jobs as arrays through submitit. Re-entrant: what is done or queued is not submitted again.

Before each sbatch an intent is written, whose id the job carries in its comment; so a submission that was killed half-way is
found again in the queue. One lock for a run directory makes two submissions follow each other, so that the second sees the jobs
of the first.
"""

import fcntl
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch import cluster
from launch.environment import site_env_file
from launch.jobs import Chunk, Job, dependency, make_chunks, make_jobs
from launch.node import DRIVER, ROUND
from launch.script import Script
from launch.snapshot import take_snapshot
from launch.states import TO_REPEAT, step_states, to_run
from launch.sweep import Submitted, Sweep, chunk_path, chunks_of, command, read_chunk, with_inputs, write_chunk
from sftdiff.errors import SftdiffError


@dataclass
class Submission:
    """What one call submitted."""

    chunks: list[Submitted]
    held: int  # steps that are in the queue already
    left: int  # jobs that the driver job submits later


def submit(sweep: Sweep, only: Collection[str] | None = None, is_driver: bool = False) -> Submission:
    """Submit all open steps of a sweep, or of `only` these and what they depend on; the report in any case.

    The driver job (`is_driver`) submits what there is room for, and comes again for the rest.
    """
    with submission_lock(sweep.runs):
        queue = cluster.queue()
        own = recover(chunks_of(sweep), queue)
        states = step_states(sweep, own, queue)
        wanted = set(sweep.steps) if only is None else {*with_inputs(sweep, list(only)), sweep.report}
        mine, others = holders(sweep, queue)
        opened = [i for i in to_run(sweep, states) if i in wanted and i not in mine]
        if opened and sweep.report in mine:
            opened.append(sweep.report)  # once more: the one in the queue does not wait for what comes now
        held = {step: mine.get(step, frozenset()) | others.get(step, frozenset()) for step in (*mine, *others)}
        jobs = make_jobs([sweep.steps[i] for i in opened], held)
        now, left = _within_limit(sweep, jobs, len(queue), is_driver)
        rest = None if is_driver else DRIVER  # the driver itself comes again for the rest
        last = rest if left else ROUND if sweep.is_diff else None
        made = _submit_jobs(sweep, now, last, [job for ids in mine.values() for job in ids])
        return Submission(made, len(sweep.steps.keys() & mine.keys()), left)


def to_retry(sweep: Sweep, cell_ids: Collection[str] | None = None) -> list[str]:
    """Return the failed, lost and blocked steps of a sweep, or of some of its steps."""
    states = step_states(sweep, chunks_of(sweep), cluster.queue())
    return [i for i, s in states.items() if s.state in TO_REPEAT and (cell_ids is None or i in cell_ids) and i != sweep.report]


@contextmanager
def submission_lock(runs: Path) -> Iterator[None]:
    """Hold the run directory's lock; the kernel releases it when the process dies."""
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / ".submit.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another submission into this run directory is at work; waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def recover(chunks: Sequence[Submitted], queue: Mapping[str, cluster.QueuedJob]) -> list[Submitted]:
    """Complete or remove the intents that a killed submission left, and return the chunks that were submitted."""
    kept = []
    for chunk in chunks:
        if chunk.job_id is None:
            found = [key for key, job in queue.items() if job.chunk == chunk.id]
            chunk.job_id = found[0].partition("_")[0] if found else None
            keys = [chunk.key(n) for n in range(len(chunk.jobs))]
            if not found or not all((chunk.logs / f"{key}_submitted.pkl").exists() for key in keys):
                cluster.cancel(found)  # its jobs would wait for files that nobody writes any more
                chunk.path.unlink()
                continue
            write_chunk(chunk)
        kept.append(chunk)
    return kept


def holders(sweep: Sweep, queue: Mapping[str, cluster.QueuedJob]) -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """Return step id -> ids of the Slurm jobs in the queue that run it: of this sweep, and of others in the run directory."""
    mine, others = dict[str, frozenset[str]](), dict[str, frozenset[str]]()
    files: dict[str, Submitted | None] = {}
    for key, job in queue.items():
        if job.chunk and job.chunk not in files:
            path = chunk_path(sweep.runs, job.chunk)
            files[job.chunk] = read_chunk(path) if path.is_file() else None  # None: of another run directory
        chunk = files.get(job.chunk)
        if chunk is None:
            continue
        array, _, index = key.partition("_")
        target = mine if chunk.path.is_relative_to(sweep.folder) else others
        for step in chunk.jobs[int(index or 0)]["steps"]:
            target[step] = target.get(step, frozenset()) | {array}
    return mine, others


def _within_limit(sweep: Sweep, jobs: list[Job], queued: int, is_driver: bool) -> tuple[list[Job], int]:
    """Return the jobs that the user's submit limit has room for, beside the driver that submits the others, and their number.

    `queued` counts all the user's jobs, as the limit does; the driver that asks is one of them.
    """
    limit = sweep.launcher["max_submit"] or cluster.submit_limit()
    if limit is None or len(jobs) + queued <= limit:
        return jobs, 0
    room = limit - queued - (0 if is_driver else 1)
    if room < 1 and not is_driver:
        raise SftdiffError(f"{queued} jobs are in the queue and {limit} are allowed: run the same command when some have ended")
    room = max(room, 0)
    return jobs[:room], len(jobs) - room


def _submit_jobs(sweep: Sweep, jobs: list[Job], last: str | None, queued: Iterable[str]) -> list[Submitted]:
    """Submit jobs, and one of the kind `last` that comes when they and those that are `queued` have ended."""
    if not jobs:
        return []
    settings, running_from = sweep.launcher, os.environ.get("SFTDIFF_CODE")
    if running_from:  # a driver job: what was submitted first decides what runs
        snapshot, has_env = Path(running_from), (Path(running_from) / "env.sh").is_file()
    else:
        env_file = site_env_file(settings)
        snapshot, has_env = take_snapshot(sweep.runs, sweep.plugins, env_file), env_file is not None
    script = Script(sweep, snapshot, has_env)
    largest = min(settings["max_array_size"] or cluster.max_array_size(), cluster.max_array_size())
    chunks, made = make_chunks(jobs, largest), list[Submitted]()
    try:
        for chunk in chunks:
            waits = dependency(chunk, lambda n: str(made[n].job_id), lambda n: len(made[n].jobs))
            made.append(script.submit(chunk, waits))
        if last:
            after = sorted({*(str(chunk.job_id) for chunk in made), *queued})
            made.append(script.submit(Chunk(last, last, [Job(last, last)], None, (), ()), "afterany:" + ":".join(after)))
    except SftdiffError as error:
        if made:
            count = sum(len(chunk.jobs) for chunk in made)
            error.args = (f"{error}. {count:,} jobs were submitted before this and go on; to cancel them: "
                          f"{command(sweep, 'cancel', sweep.name)}",)  # fmt: skip
        raise
    return made
