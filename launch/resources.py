"""What each job asks of Slurm, by step kind and student; GPU-hours of a plan."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from launch.jobs import Job
from launch.settings import JobConfig
from sftdiff.errors import SftdiffError
from sftdiff.records import read_done
from sftdiff.steps import KINDS

JOB_SETTINGS = tuple(setting.name for setting in fields(JobConfig))
RANKED = ("train",)
MEASURED = 50  # done steps of a kind that an estimate reads


def check_resources(settings: Mapping[str, Any]) -> None:
    """Raise SftdiffError on a step kind that there is not, or a number that no job could have."""
    places = {"resources": settings["resources"]} | {f"students.{name}": kinds for name, kinds in settings["students"].items()}
    for place, kinds in places.items():
        for kind in kinds or ():
            if kind not in KINDS:
                raise SftdiffError(f"hydra.launcher.{place}.{kind}: there is no such step kind; known are {', '.join(KINDS)}")
    for key in ("max_array_size", "max_submit", "array_parallelism", "timeout_min"):
        if settings[key] is not None and settings[key] < (2 if key == "max_submit" else 1):
            raise SftdiffError(f"hydra.launcher.{key}: {settings[key]} is too small")


def resources_of(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the job settings for a resources key, "KIND" or "KIND STUDENT"; those that are not set are left out."""
    kind, _, student = key.partition(" ")
    of_student = (settings["students"].get(student) or {}).get(kind) or {}
    merged: dict[str, Any] = {}
    for layer in (settings, settings["resources"].get(kind) or {}, of_student):
        merged |= {name: layer[name] for name in JOB_SETTINGS if layer.get(name) is not None}
    if kind not in RANKED and ranks_of(merged) > 1:
        raise SftdiffError(
            f"hydra.launcher: a {kind} step runs on one rank, but would get {ranks_of(merged)}: several nodes or tasks belong to "
            "hydra.launcher.resources.train.nodes and hydra.launcher.resources.train.tasks_per_node"
        )
    return merged


def ranks_of(resources: Mapping[str, Any]) -> int:
    return int(resources.get("nodes") or 1) * int(resources.get("tasks_per_node") or 1)


def gpus_of(resources: Mapping[str, Any]) -> int:
    """Return how many GPUs a job holds, as far as its settings say (not inside additional_parameters)."""
    nodes = int(resources.get("nodes") or 1)
    if resources.get("gpus_per_task"):
        return int(resources["gpus_per_task"]) * ranks_of(resources)
    gres = str(resources.get("gres") or "").rpartition(":")
    return nodes * int(resources.get("gpus_per_node") or (gres[2] if gres[0].startswith("gpu") and gres[2].isdigit() else 0))


def gpu_hours(settings: Mapping[str, Any], jobs: Iterable[Job], runs: Path) -> tuple[float, float, int]:
    """Return (GPU-hours if every job took its whole time, GPU-hours from measured seconds, number of measured steps).

    The second is of the kinds that have done steps in this run directory.
    """
    limit, measured, seen, known = 0.0, 0.0, 0, dict[str, list[float]]()
    for job in jobs:
        resources = resources_of(settings, job.resources)
        gpus = gpus_of(resources)
        if not gpus:
            continue
        limit += gpus * resources["timeout_min"] / 60
        for step_id in job.steps:
            kind = step_id.partition("-")[0]
            if kind not in known:
                known[kind] = measured_seconds(runs, kind)
                seen += len(known[kind])
            if known[kind]:
                measured += gpus * sum(known[kind]) / len(known[kind]) / 3600
    return limit, measured, seen


def measured_seconds(runs: Path, kind: str) -> list[float]:
    """Return how long some done steps of a kind took."""
    folders = sorted(path.parent for path in runs.glob(f"steps/{kind}-*/DONE"))[:MEASURED]
    return [float(done["seconds"]) for folder in folders if (done := read_done(folder)) and "seconds" in done]
