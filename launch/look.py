"""What a command is about (a sweep, a cell, a step), and what one look at it finds: the queue first, the directories second."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch import cluster
from launch.logs import clean
from launch.states import TO_REPEAT, StepState, step_states
from launch.sweep import Submitted, Sweep, cell_name, cell_steps, chunks_of, load_sweep, sweep_names
from sftdiff.claims import read_claim
from sftdiff.errors import SftdiffError
from sftdiff.records import read_json
from sftdiff.steps import KINDS

KIND_ORDER = {kind: number for number, kind in enumerate(KINDS)}
UNKNOWN = "unknown"  # submitted and without a result, while the queue cannot be asked
LISTED = 10  # names in an error


@dataclass(frozen=True)
class Target:
    """What a command is about: a sweep, one of its cells, or one step."""

    sweep: Sweep
    kind: str  # sweep, cell or step
    name: str
    cells: list[dict[str, Any]]
    steps: list[str]

    def __str__(self) -> str:
        return f"sweep {self.name}" if self.kind == "sweep" else f"{self.kind} {self.name} of sweep {self.sweep.name}"

    @property
    def words(self) -> list[str]:
        """How a command line names it."""
        return [self.name] if self.kind == "sweep" else [self.sweep.name, self.name]


def find(runs: Path, words: Sequence[str]) -> Target:
    """Return the sweep, cell or step that the words name; a cell or step without its sweep is looked for in the newest first."""
    names = sweep_names(runs)
    if not names:
        raise SftdiffError(f"there is no sweep under {runs}; another run directory: runs=FOLDER")
    if not words or (len(words) == 1 and words[0] in names):
        sweep = load_sweep(runs, words[0] if words else names[0])
        return Target(sweep, "sweep", sweep.name, sweep.cells, list(sweep.steps))
    named = words[0] in names
    text = " ".join(words[1:] if named else words)
    for name in [words[0]] if named else names:
        try:
            sweep = load_sweep(runs, name)
        except SftdiffError:  # of another version
            if named:
                raise
            continue
        if found := _inside(sweep, text):
            return found
    if named:
        cells = _listed(map(cell_name, sweep.cells))
        raise SftdiffError(f"{text!r} is neither a cell nor a step of sweep {words[0]}; its cells: {cells}")
    raise SftdiffError(
        f"{text!r} is neither a sweep under {runs} nor a cell or step of one, nor is it status, logs, cancel or retry; "
        f"sweeps: {_listed(names)}"
    )


def _inside(sweep: Sweep, text: str) -> Target | None:
    cells = [cell for cell in sweep.cells if cell_name(cell) == text]
    if not cells and (steps := [step for step in sweep.steps if text in (step, step.rpartition("-")[2])]):
        return Target(sweep, "step", steps[0], [], steps[:1])
    cells = cells or [cell for cell in sweep.cells if text in cell_name(cell)]
    if len(cells) > 1:
        names = _listed(map(cell_name, cells))
        raise SftdiffError(f"{text!r} is in the names of {len(cells):,} cells of sweep {sweep.name}; name one of them: {names}")
    return Target(sweep, "cell", cell_name(cells[0]), cells, needs(sweep, cell_steps(cells[0]))) if cells else None


def _listed(names: Iterable[str]) -> str:
    shown = [clean(name) for name in names]
    return "; ".join(shown[:LISTED]) + (f"; and {len(shown) - LISTED:,} more" if len(shown) > LISTED else "")


def needs(sweep: Sweep, ids: Iterable[str]) -> list[str]:
    """Return steps and all that they depend on; the same as sweep.with_inputs, without looking at every step of the sweep."""
    found, stack = set[str](), list(ids)
    while stack:
        step = stack.pop()
        if step not in found:
            found.add(step)
            stack.extend(sweep.steps[step].inputs.values())
    return sorted(found, key=lambda step: (KIND_ORDER[sweep.steps[step].kind], step))


@dataclass(frozen=True)
class Look:
    """What one look at a sweep found; `no_answer` says why the queue could not be asked."""

    sweep: Sweep
    chunks: list[Submitted]
    queue: dict[str, cluster.QueuedJob]
    states: dict[str, StepState]
    no_answer: str = ""

    @property
    def jobs(self) -> dict[str, Submitted]:
        """The jobs of this sweep in the queue: key -> chunk."""
        own = {chunk.id: chunk for chunk in self.chunks}
        return {key: own[job.chunk] for key, job in self.queue.items() if job.chunk in own}

    def count(self, *states: str) -> int:
        return sum(found.state in states for found in self.states.values())


def look(sweep: Sweep) -> Look:
    """Ask the queue and then read the step directories: a job that ends in between has written its result before."""
    chunks = chunks_of(sweep)
    if not chunks:  # a sweep of this machine, where the steps' claims say enough
        return Look(sweep, chunks, {}, _states_without_queue(sweep, chunks))
    try:
        queue = cluster.queue()
        if (sweep.folder / "plan.json").stat().st_uid != os.getuid():  # a colleague's, whose jobs are not among mine
            queue |= cluster.queue(chunk.job_id for chunk in chunks if chunk.job_id)
    except SftdiffError as error:
        return Look(sweep, chunks, {}, _states_without_queue(sweep, chunks), str(error))
    return Look(sweep, chunks, queue, step_states(sweep, chunks, queue))


def _states_without_queue(sweep: Sweep, chunks: list[Submitted]) -> dict[str, StepState]:
    """Return the states as far as the step directories tell them.

    A claim of a Slurm job counts by its heartbeat, and a failure if it is younger than the step's last submission.
    """
    claims = [read_claim(sweep.directory(step)) for step in sweep.steps]
    jobs = {str(claim["job"]) for claim in claims if claim is not None and claim["job"] is not None}
    states = step_states(sweep, chunks, {f"claim {job}": cluster.QueuedJob("", job, True, "", "") for job in jobs})
    submitted = {step: chunk.path for chunk in chunks if chunk.job_id for job in chunk.jobs for step in job["steps"]}
    for step, found in states.items():
        if found.state not in TO_REPEAT:
            continue
        path, inputs = sweep.directory(step) / "FAILED", sweep.steps[step].inputs.values()
        if path.exists() and (step not in submitted or path.stat().st_mtime > submitted[step].stat().st_mtime):
            if found.state == "blocked":  # in the step's own words: its input may be unknown by now
                states[step] = replace(found, note=str(read_json(path)["error"]))
        elif step in submitted:
            states[step] = StepState(UNKNOWN, f"submitted as job {found.job}", found.job)
        elif found.state == "blocked" and not any(states[i].state in TO_REPEAT for i in inputs if i in states):
            states[step] = StepState("open")
    return states
