"""What the checks of a site share: the lines that they print, the settings that they check, and the calls of Slurm's commands."""

import os
import re
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import cluster
from launch.resources import gpus_of

ROOT = Path(__file__).resolve().parent.parent.parent
ANSWER_SECONDS = 60  # of a Slurm command
SECRET = re.compile(r"\w*(?:KEY|TOKEN|SECRET|PASSW|CREDENTIAL)\w*", re.IGNORECASE)
LAUNCHER = "hydra.launcher"
ENV_FILE = "slurm/env.sh"

Settings = dict[str, Any]


def clean(text: str) -> str:
    """Return a text on one line and without the secrets that it may hold."""
    for name, value in os.environ.items():
        if SECRET.fullmatch(name) and len(value) > 5:
            text = text.replace(value, "***")
    text = re.sub(rf"({SECRET.pattern}=)\S+", r"\1***", text, flags=re.IGNORECASE)
    return " ".join(re.sub(r"://[^/\s@]+@", "://***@", text).split())


class Report:
    """Prints each check, and counts."""

    def __init__(self) -> None:
        self.counts = {"ok": 0, "warn": 0, "FAIL": 0}

    def ok(self, name: str, found: str) -> None:
        self._add("ok", name, found, "")

    def warn(self, name: str, found: str, change: str) -> None:
        self._add("warn", name, found, change)

    def fail(self, name: str, found: str, change: str) -> None:
        self._add("FAIL", name, found, change)

    @property
    def failed(self) -> int:
        return self.counts["FAIL"]

    def _add(self, level: str, name: str, found: str, change: str) -> None:
        self.counts[level] += 1
        print(f"{level:<5} {name:<14} {clean(found)}", flush=True)
        if change:
            print(f"{'':<6}{'':<14} -> {clean(change)}", flush=True)


@dataclass
class Asked:
    """What some step kinds ask of Slurm, all of them the same."""

    kinds: list[str]
    resources: Settings
    places: Mapping[str, str] = field(default_factory=dict)  # setting -> where it is set: hydra.launcher.resources.train.nodes

    def place(self, setting: str) -> str:
        return self.places.get(setting, f"{LAUNCHER}.{setting}")

    def __str__(self) -> str:
        r = self.resources
        shape = f"{r['nodes']} node{'s' * (r['nodes'] > 1)} with {r['tasks_per_node']} x {r.get('cpus_per_task', 1)} CPUs"
        memory, gpus = r.get("mem_gb"), gpus_of(r)
        more = [f"{memory} GB a node"] * bool(memory) + [f"{gpus} GPU{'s' * (gpus > 1)}"] * bool(gpus)
        return f"{', '.join(self.kinds)}: {', '.join([shape, *more])}, {r['timeout_min']} min"


@dataclass
class Site:
    """The settings of the sweep, the options of this run, and what is known of the cluster so far."""

    report: Report
    settings: Settings  # of the launcher
    config: Settings  # of the first cell
    students: list[str]
    nodes: int
    timeout: int
    cpu_only: bool
    name: str = field(default_factory=lambda: f"preflight-{uuid.uuid4().hex[:8]}")  # of the job and the folder
    shapes: list[Settings] = field(default_factory=list)  # of the partition's nodes: nodes, usable, cpus, gb, gpus
    minutes: int | None = None  # the partition's time limit
    env_file: Path | None = None
    made: list[Path] = field(default_factory=list)  # folders, the outermost first
    submitted: bool = False

    @property
    def runs(self) -> Path:
        return Path(self.config["runs"]).absolute()

    @property
    def folder(self) -> Path:
        """Return the check's own folder, which the nodes are to see."""
        return self.runs / f".{self.name}"

    def largest(self, what: str) -> int:
        """Return what the largest node has of something; 0 if no node is known."""
        return max((int(shape[what]) for shape in self.shapes), default=0)


def run(*command: str, text: str = "", seconds: float = ANSWER_SECONDS) -> tuple[int, str]:
    """Run a command and return its status and all that it prints. In a session of its own: Ctrl-C does not reach it."""
    environment = cluster.without_job_variables(os.environ) if cluster.inside_job() else None
    try:
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                              timeout=seconds, start_new_session=True)  # fmt: skip
    except FileNotFoundError:
        return 127, f"there is no {command[0]} on this machine"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer within {seconds:.0f} s"
    return done.returncode, done.stdout.strip()
