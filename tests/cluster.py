"""A private Slurm for tests, and sweeps small enough to run on it many times."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT

from launch.sweep import Submitted, Sweep, chunks_of, load_sweep, sweep_names

MISSING = "Slurm is not installed (apt-get install slurm-wlm munge)"
needs_slurm = pytest.mark.skipif(shutil.which("slurmctld") is None, reason=MISSING)
DEVCLUSTER = ROOT / "slurm/devcluster"
SCENARIOS = "".join(f"- {{id: s{n}, suite: quick, kind: chat, turns: [What is the date today?]}}\n" for n in range(4))


class Cluster:
    """A running private cluster, and commands against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "WANDB", "SFTDIFF"))}
        self.environment = keep | {"SLURM_CONF": str(folder / "etc/slurm.conf"), "PYTHONPATH": str(ROOT)}

    def control(self, action: str, *options: str) -> None:
        """Start (also what died), or stop the cluster."""
        command = [sys.executable, str(DEVCLUSTER), action, "--dir", str(self.folder), *options]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def sftdiff(self, module: str, *arguments: str, cwd: Path, check: int | None = 0, **more: str) -> str:
        """Run `python -m MODULE ...` and return all that it prints."""
        command = [sys.executable, "-m", module, *arguments]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, env=self.environment | more, cwd=cwd, timeout=300, **streams)
        assert check is None or done.returncode == check, done.stdout
        return str(done.stdout)

    def queued(self) -> list[str]:
        return self.run("squeue", "--noheader", "--array", "--format=%F_%K %T %r %j").splitlines()

    def pid(self, daemon: str) -> int:
        return int((self.folder / f"run/{daemon}.pid").read_text().split()[0])

    def processes(self, job: str) -> list[psutil.Process]:
        """Return the processes that run in a job (its raw id), by the variables of Slurm that they have."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.Error, OSError):
                continue
            if environment.get("SLURM_JOB_ID") == job and environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                found.append(process)
        return found

    def ranks(self, job: str) -> list[psutil.Process]:
        """Return the processes of a job that train, one for each rank, in the order of the ranks."""
        found = {}
        for process in self.processes(job):
            with suppress(psutil.Error):
                rank = process.environ().get("SLURM_PROCID")
                is_python = process.name().startswith("python")  # not srun, which has the same words
                if rank is not None and is_python and "submitit.core._submit" in process.cmdline():
                    found[int(rank)] = process
        return [process for _, process in sorted(found.items())]


@contextmanager
def private_cluster(*options: str) -> Iterator[Cluster]:
    """Start a cluster in a short folder (sockets have short names), and stop it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="sftdiff-slurm-", dir="/tmp"))
    cluster = Cluster(folder)
    try:
        cluster.control("start", *(options or ("--nodes", "3")))
        yield cluster
    finally:
        cluster.control("stop")
        shutil.rmtree(folder, ignore_errors=True)


def small(tiny_student: Path, *more: str) -> list[str]:
    """Return the overrides of a sweep on the cluster whose steps take seconds."""
    settings = ["trait_eval=date_confusion", "trait_eval.date_confusion.scenarios=scenarios.yaml", "sampling.max_tokens=4"]
    job = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.resources.train.gpus_per_node=0"]
    student = ["model=path", f"model.path={tiny_student}", "train.precision=fp32", "sampling.precision=fp32"]
    return ["-m", *job, *student, *settings, "report.resamples=200", "track=off", "prompts.sample=16", "train.epochs=1", *more]


def work_folder(folder: Path) -> Path:
    """Prepare a folder to run sftdiff's commands in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scenarios.yaml").write_text(f"trait: date_confusion\nversion: 1\nscenarios:\n{SCENARIOS}")
    return folder


def the_sweep(folder: Path) -> Sweep:
    """Return the newest sweep of a folder."""
    return load_sweep(folder / "runs", sweep_names(folder / "runs")[0])


def chunk(sweep: Sweep, kind: str, number: int = -1) -> Submitted:
    """Return the last submitted chunk of a kind."""
    return [c for c in chunks_of(sweep) if c.kind == kind][number]


def step_directory(folder: Path, kind: str) -> Path:
    """Return the only step directory of a kind."""
    (found,) = (folder / "runs/steps").glob(f"{kind}-*")
    return found


def ended(path: Path) -> int:
    """Return how many attempts at a step ran to the end."""
    return sum(log.read_text(errors="replace").count("\nsftdiff: done at") for log in path.glob("logs/attempt_*"))


def done_steps(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("runs/steps/*/DONE")}


def curve(path: Path) -> list[tuple[int, float, float]]:
    """Return (optimizer step, loss, learning rate) of a finished training."""
    lines = [json.loads(line) for line in (path / "curve.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["lr"]) for line in lines]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 240.0) -> Any:
    """Wait until a condition holds and return what it returned."""
    deadline = time.time() + seconds
    while not (found := condition()):
        assert time.time() < deadline, f"timed out: {what}"
        time.sleep(0.1)
    return found


def wait_for_end(cluster: Cluster, seconds: float = 300.0) -> None:
    """Wait until the queue is empty."""
    wait_until(lambda: not cluster.queued(), "the queue is not empty", seconds)


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


class Hold:
    """Keeps processes stopped until they are let go or killed: Slurm wakes those that it ends, and then waits some seconds."""

    def __init__(self, processes: Sequence[psutil.Process]) -> None:
        self.processes = processes
        self._end = threading.Event()
        self._suspend()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _suspend(self) -> None:
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def _keep(self) -> None:
        while not self._end.wait(0.01):
            self._suspend()

    def let_go(self) -> None:
        self._end.set()
        self._thread.join()
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()
