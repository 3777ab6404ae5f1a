"""A sweep on disk: runs/sweeps/NAME/ with plan.json, what was submitted (chunks/), and where its steps lie."""

import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.jobs import OpenStep
from sftdiff.claims import is_live, read_claim
from sftdiff.errors import SftdiffError
from sftdiff.records import StepRecord, read_json, state, write_json, write_record

if TYPE_CHECKING:  # the status command reads sweeps, and does not wait for all that a plan imports
    from launch.plan import Plan


@dataclass(frozen=True)
class Sweep:
    """A sweep as plan.json states it. `steps` are in an order in which inputs come first."""

    runs: Path
    name: str
    report: str  # step id
    cells: list[dict[str, Any]]
    steps: dict[str, OpenStep]
    plugins: list[str]  # modules of the user's own filters and scorers
    launcher: dict[str, Any]  # settings of the Slurm launcher; {} for a local sweep
    is_diff: bool = False  # one with rounds

    @property
    def folder(self) -> Path:
        return self.runs / "sweeps" / self.name

    def directory(self, step_id: str) -> Path:
        return self.runs / "steps" / step_id


def write_plan(plan: "Plan", launcher: Mapping[str, Any] | None = None) -> Sweep:
    """Write the config.yaml of each step that is not done, and the sweep's plan.json."""
    from launch.plan import report_cell

    track = track_settings(plan)
    write_steps(plan, {"track": track})
    folder = plan.runs / "sweeps" / plan.sweep
    folder.mkdir(parents=True, exist_ok=True)
    steps = {
        s.id: {"kind": s.kind, "inputs": s.inputs, "resources": resources_key(plan, s.id), "runtime": s.runtime}
        for s in plan.steps.values()
    }
    cells = [report_cell(cell) for cell in plan.cells]
    content = {"sweep": plan.sweep, "report": plan.report, "cells": cells, "steps": steps, "plugins": _plugins(plan)}
    if launcher is None and (folder / "plan.json").is_file():  # what was submitted before can still be looked at and retried
        launcher = load_sweep(plan.runs, plan.sweep).launcher
    write_json(folder / "plan.json", content | {"track": track, "launcher": dict(launcher or {}), "is_diff": plan.is_diff})
    return load_sweep(plan.runs, plan.sweep)


def write_steps(plan: "Plan", runtime: Mapping[str, Any]) -> None:
    """Write the config.yaml of each step that is neither done nor being worked on; `runtime` is added to its own."""
    for step in plan.steps.values():
        directory = plan.directory(step.id)
        claim = read_claim(directory)
        if state(directory) == "done" or (claim is not None and is_live(claim)):
            continue  # whoever works on it has written what it works with
        directory.mkdir(parents=True, exist_ok=True)
        write_record(StepRecord(directory, step.kind, step.config, step.inputs, step.files, {**step.runtime, **runtime}))


def resources_key(plan: "Plan", step_id: str) -> str:
    """Return "KIND STUDENT" (or "KIND"): what a step's resources depend on."""
    step = plan.steps[step_id]
    student = plan.steps.get(step.inputs.get("student", ""))
    return f"{step.kind} {student.config['name']}" if student is not None else step.kind


def _plugins(plan: "Plan") -> list[str]:
    targets = (step.config.get(key) for step in plan.steps.values() for key in ("_target_", "scorer"))
    return sorted({str(target).partition(".")[0] for target in targets if target} - {"sftdiff"})


def track_settings(plan: "Plan") -> dict[str, Any]:
    track = plan.cells[0].config["track"]
    return {**track, "sweep": plan.sweep, "tags": [f"sweep:{plan.sweep}"[:64]]}


def load_sweep(runs: Path, name: str) -> Sweep:
    """Read a sweep's plan.json; raises SftdiffError with the known names if there is none."""
    path = runs / "sweeps" / name / "plan.json"
    if not path.is_file():
        known = ", ".join(sweep_names(runs)) or "none"
        raise SftdiffError(f"there is no sweep {name} under {runs}; known: {known} (another run directory: runs=FOLDER)")
    content = read_json(path)
    try:
        track = {"track": content["track"]}
        steps = {
            i: OpenStep(i, s["kind"], s["inputs"], s["resources"], s["runtime"] | track) for i, s in content["steps"].items()
        }
        return Sweep(runs, name, content["report"], content["cells"], steps, content["plugins"], content["launcher"],
                     content.get("is_diff", False))  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        raise SftdiffError(f"{path} is not a plan of this version: run the sweep's command again") from None


def sweep_names(runs: Path) -> list[str]:
    """Return the names of all sweeps, the newest first."""
    plans = sorted(runs.glob("sweeps/*/plan.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    return [path.parent.name for path in plans]


@dataclass
class Submitted:
    """One chunk as its file states it. Without `job_id` it is an intent: sbatch may or may not have been reached."""

    path: Path
    kind: str
    jobs: list[dict[str, Any]]  # {"steps": [ids], "name": cell, "runtime": {id: settings}}
    job_id: str | None
    dependency: str | None
    resources: dict[str, Any]
    ranks: int

    @property
    def id(self) -> str:
        return chunk_id(self.path)

    def key(self, index: int) -> str:
        """Return the key under which the queue shows a job of this chunk."""
        return f"{self.job_id}_{index}" if len(self.jobs) > 1 else str(self.job_id)

    @property
    def logs(self) -> Path:
        """The folder in which submitit keeps the logs of this chunk's jobs."""
        return self.path.with_suffix("")


def chunk_id(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.stem}"


def chunk_path(runs: Path, chunk: str) -> Path:
    sweep, _, name = chunk.rpartition("/")
    return runs / "sweeps" / sweep / "chunks" / f"{name}.json"


def new_chunk_path(sweep: Sweep, kind: str) -> Path:
    folder = sweep.folder / "chunks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{len(list(folder.glob('*.json'))):05d}-{kind}-{uuid.uuid4().hex[:8]}.json"


def write_chunk(chunk: Submitted) -> None:
    names = ("kind", "jobs", "job_id", "dependency", "resources", "ranks")
    write_json(chunk.path, {name: getattr(chunk, name) for name in names})


def read_chunk(path: Path) -> Submitted:
    """Read a chunk's file."""
    try:
        return Submitted(path, **read_json(path))
    except TypeError:
        raise SftdiffError(f"{path} is damaged: delete it, cancel its job in the queue, and run the same command again") from None


def chunks_of(sweep: Sweep) -> list[Submitted]:
    """Return what was submitted for a sweep, oldest first."""
    return [read_chunk(path) for path in sorted((sweep.folder / "chunks").glob("*.json"))]


def command(sweep: Sweep, verb: str, *words: str) -> str:
    """Return a command line of launch.status for this sweep's run directory."""
    where = [] if str(sweep.runs) == "runs" else [f"runs={sweep.runs}"]
    return f"python -m launch.status {shlex.join([verb, *words, *where])}"


def cell_name(cell: Mapping[str, Any]) -> str:
    """Return how a cell is called: its arm, and its seed if it was trained."""
    return f"{cell['arm']} seed={cell['seed']}" if "train" in cell["steps"] else str(cell["arm"])


def cell_steps(cell: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*cell["steps"].values(), *cell["judges"].values()]))


def with_inputs(sweep: "Sweep | Plan", ids: Sequence[str]) -> Iterator[str]:
    """Yield steps and all that they depend on, inputs first."""
    wanted = set[str]()
    stack = list(ids)
    while stack:
        step = stack.pop()
        if step not in wanted:
            wanted.add(step)
            stack.extend(sweep.steps[step].inputs.values())
    yield from (step for step in sweep.steps if step in wanted)
