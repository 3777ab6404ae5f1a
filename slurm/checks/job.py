"""The check's one job: its script, the wait for it, and its end."""

import contextlib
import json
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import submitit

from launch.resources import gpus_of, ranks_of
from launch.script import GENERAL, Script
from launch.snapshot import take_snapshot
from launch.sweep import Submitted, Sweep
from sftdiff.records import read_json
from slurm.checks.on_node import PATIENCE
from slurm.checks.site import Asked, Settings, Site, run

MINUTES = 10  # time limit of the job
GRACE_SECONDS = 15  # for files that come late after its end
END_SECONDS = 40  # that a cancelled job may take to end: Slurm's KillWait is 30 by default
ERROR = r"error|fatal|no such|not found|cannot|could not|denied"
WAITING = ("PENDING", "CONFIGURING")
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "SIGNALING")

Ranks = dict[int, Settings]


class JobEnded(Exception):
    """The job could not be submitted, did not start or is gone: (what was found, what to change)."""


class Job:
    """The job, once it is submitted: what its ranks have found, and when their answers were seen here."""

    def __init__(self, site: Site, key: str, world: int) -> None:
        self.site, self.key, self.world = site, key, world
        self.ranks: Ranks = {}
        self.told, self.waited, self.state = 0.0, 0.0, ""
        self.seen: dict[int, float] = {}

    def wait(self) -> None:
        """Wait until it starts; raises JobEnded if it does not within the timeout."""
        began, shown = time.monotonic(), ""
        while (state := self._ask())[0] in WAITING:
            self.waited = time.monotonic() - began
            if self.waited > self.site.timeout:
                found = f"job {self.key} was still waiting after {self.site.timeout} s: {state[1]}; it is cancelled"
                raise JobEnded(f"{found}, and nothing was checked on the nodes", way_to_start(state[1]))
            if state[1] not in (shown, "None"):
                shown = state[1]
                print(f"      job {self.key} waits in the queue: {shown}", file=sys.stderr, flush=True)
            time.sleep(0.5 if self.waited < 30 else 5)

    def follow(self) -> None:
        """Read what the ranks find, and answer them, until all are at their end or the job is gone."""
        limit, asked, gone, greeted = time.monotonic() + 60 * MINUTES, time.monotonic(), 0.0, 0.0
        while time.monotonic() < limit and not (gone and time.monotonic() > gone + GRACE_SECONDS):
            self._read()
            if len(self.ranks) == self.world and all(rank.get("end") for rank in self.ranks.values()):
                return
            greeted = greeted or (time.monotonic() if self.ranks else 0.0)
            everybody = sum("answer" in rank for rank in self.ranks.values()) == self.world
            if not self.told and (everybody or (greeted and time.monotonic() > greeted + PATIENCE / 2)):
                self._tell()
            if not gone and time.monotonic() > asked + 2:
                self.state, asked = self._ask()[0], time.monotonic()
                gone = 0.0 if self.state in RUNNING else asked
            time.sleep(0.05)

    def _read(self) -> None:
        names = [path for path in self.site.folder.iterdir() if re.fullmatch(r"rank-\d+\.json", path.name)]
        for path in names:  # listed, so that a network file system looks again
            with contextlib.suppress(OSError, ValueError):
                found = read_json(path)
                self.ranks[found["rank"]] = found
                if "clock" in found.get("answer", {}):
                    self.seen.setdefault(found["rank"], time.time())

    def _tell(self) -> None:
        (self.site.folder / ".go").write_text(self.site.name)
        self.told = time.time()
        (self.site.folder / ".go").replace(self.site.folder / "go")

    def _ask(self) -> tuple[str, str]:
        """Return the job's state and the reason for it."""
        status, text = run("squeue", "--noheader", f"--jobs={self.key}", "--states=all", "--format=%T|%r")
        if status and "Invalid job id" not in text:
            return "RUNNING", ""  # the controller is busy
        state, _, reason = text.partition("|")
        return (state, reason) if not status and state else ("GONE", "")

    def last_words(self) -> str:
        """Return what the job's logs say at their end, errors first, without what bash shows with -x (it may hold secrets)."""
        texts = [path.read_text(errors="replace") for path in sorted((self.site.folder / "logs").glob("*_log.*"))]
        lines = [line.strip() for text in texts for line in text.splitlines() if line.strip() and line[0] != "+"]
        lines = [line for line in dict.fromkeys(lines) if not re.match(r"srun: .*task|sftdiff: start", line)]
        return " / ".join([line for line in lines if re.search(ERROR, line, re.IGNORECASE)][-3:] or lines[-3:])[:600]


def way_to_start(reason: str) -> str:
    """Return what to do about a job that waits for this reason."""
    longer = "--timeout SECONDS waits longer"
    if reason in ("Priority", "Resources", "None", "BeginTime"):
        return f"others use the nodes: {longer}; or another hydra.launcher.partition or qos"
    return f"{longer}; but if {reason} will not pass by itself: hydra.launcher.partition, qos, account or resources.train"


def submit(site: Site, train: Asked, report: Asked) -> Job:
    """Prepare the folder and submit the job; raises JobEnded if Slurm does not take it."""
    folder, asked = site.folder, of_check(site, train)
    (folder / "logs").mkdir()
    settings = {"token": site.name, "track": site.config["track"]["mode"], "cpu_only": site.cpu_only, "gpus": gpus_each(train)}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "report.sh").write_text(script_of(site, report))
    shutil.copyfile(Path(__file__).with_name("on_node.py"), folder / "on_node.py")
    text = script_of(site, asked, take_snapshot(folder, [], site.env_file))
    site.submitted = True
    status, said = run("sbatch", "--parsable", text=text)
    key = re.search(r"^(\d+)(;\S+)?$", said, re.MULTILINE)
    if status or not key:
        raise JobEnded(f"Slurm refuses the check's job, {asked}: {said}", "--nodes 1, or hydra.launcher.resources.train")
    return Job(site, key[1], ranks_of(asked.resources))


def of_check(site: Site, train: Asked) -> Asked:
    """Return what the job asks for: that of a training, but for several nodes with one task each, or one with two."""
    resources = {k: v for k, v in train.resources.items() if k != "gpus_per_task"}
    gpus, cpus = gpus_each(train), int(resources.get("cpus_per_task") or 1)
    room = sum(s["nodes"] for s in site.shapes if s["usable"] and s["cpus"] >= cpus and s["gpus"] >= gpus)
    nodes = max(1, min(site.nodes, room))
    if gpus and not resources.get("gres"):
        resources["gpus_per_node"] = gpus
    if nodes == 1:
        resources["cpus_per_task"] = max(1, cpus // 2)
    resources |= {"nodes": nodes, "tasks_per_node": 2 if nodes == 1 else 1, "timeout_min": MINUTES}
    return Asked(["train"], resources, train.places)


def gpus_each(asked: Asked) -> int:
    """Return how many GPUs some jobs ask for on each node."""
    return gpus_of(asked.resources) // int(asked.resources["nodes"])


def script_of(site: Site, asked: Asked, snapshot: Path | None = None) -> str:
    """Return the sbatch script of a sweep's job; with a snapshot of the code, that of the check's own job."""
    sweep = Sweep(site.runs, "preflight", "", [], {}, [], site.settings)
    made = Script(sweep, snapshot or site.folder, site.env_file is not None)
    chunk = Submitted(site.folder / "chunk.json", "preflight", [], None, None, asked.resources, ranks_of(asked.resources))
    parameters, command = made.parameters(chunk, None), "true"
    if snapshot is not None:
        more = {name: value for name, value in parameters["additional_parameters"].items() if name != "requeue"}
        own = {"name": site.name, "comment": "preflight", "additional_parameters": {**more, "no-requeue": True}, "teardown": []}
        parameters |= own | {"setup": [*sourcing(site, snapshot), *parameters["setup"]]}
        command = shlex.join([sys.executable, "-u", str(site.folder / "on_node.py"), str(site.folder)])
    executor = submitit.AutoExecutor(site.folder / "logs", cluster="slurm", slurm_max_num_timeout=0)
    executor.update_parameters(**{k if k in GENERAL else f"slurm_{k}": v for k, v in parameters.items()})
    of_slurm: Any = executor._executor
    return str(of_slurm._make_submission_file_text(command, site.name))


def sourcing(site: Site, snapshot: Path) -> list[str]:
    """Return the line that sources env.sh in a shell of its own, and notes which lines fail and whether it comes to its end."""
    if site.env_file is None:
        return []
    file, notes = shlex.quote(str(snapshot / "env.sh")), shlex.quote(str(site.folder / "env"))
    trap = f'status=$?; [ "${{BASH_SOURCE[0]}}" != {file} ] || echo "line $LINENO: status $status"'
    return [f"( trap {shlex.quote(trap)} ERR; source {file}; trap - ERR; echo end ) > {notes}.lines 2> {notes}.errors"]


def remove(site: Site) -> None:
    """Cancel the job, by its name if its number was not seen yet, and remove the check's files."""
    if site.submitted:
        run("scancel", f"--name={site.name}", "--me")
        limit = time.monotonic() + END_SECONDS
        while (left := run("squeue", "--noheader", f"--name={site.name}", "--me"))[1] and not left[0]:
            if time.monotonic() > limit:
                print(f"preflight: its job still ends: {left[1]}", file=sys.stderr)
                break
            time.sleep(0.2)
    for _ in range(20):  # a network file system may keep a file that a process of the job has open
        shutil.rmtree(site.folder, ignore_errors=True)
        if not site.folder.exists():
            break
        time.sleep(0.5)
    else:
        print(f"preflight: could not remove {site.folder}", file=sys.stderr)
    for folder in reversed(site.made[:-1]):
        with contextlib.suppress(OSError):  # it holds something else by now
            folder.rmdir()
