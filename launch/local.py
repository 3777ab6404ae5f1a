"""The local executor: one warm worker process runs the steps in order; a worker that dies is replaced."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

from launch.data import PlannedStep
from launch.plan import Plan
from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.packages import TREE
from sftdiff.records import read_json, state, write_json

# Seconds of a step of each kind before the first one was measured: the embedded default on two cores.
GUESSES = {"student": 30.0, "pack": 2.0, "train": 80.0, "sample": 20.0, "judge": 1.0, "report": 4.0}
TICK_SECONDS = 1.0
BAR_COLUMNS = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[text]}"))
# On a CPU, glibc gives the memory of each large tensor back to the system and faults it in again; a worker keeps it instead.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}
FULL_DISK = 1 << 16  # free bytes


class Worker:
    """A process that runs one step after the other; torch is imported once."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[str] | None = None

    def run(self, directory: Path) -> str:
        """Run one step and return its outcome; "lost" if the worker died under it."""
        if self.process is None:
            self.process = start([sys.executable, "-m", "sftdiff.steps", "--serve"], self.log)
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{directory}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return str(json.loads(answer)["outcome"])
        code = self.process.wait()
        self.process = None
        record_loss(directory, code)
        return "lost"

    def close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


def start(command: Sequence[str], log: Path) -> "subprocess.Popen[str]":
    """Start a worker that imports the same code as this process, whatever its directory."""
    path = os.pathsep.join(p for p in (str(TREE), os.environ.get("PYTHONPATH", "")) if p)
    environment = {**MALLOC, **os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as stream:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=environment, text=True
        )


def record_loss(directory: Path, code: int) -> None:
    reason = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"exited with code {code}"
    write_json(directory / "FAILED", {"error": f"the worker process {reason}", "outcome": "lost", "time": time.time()})


def run_ranks(directory: Path, processes: int, log: Path) -> str:
    """Run a train step on several ranks, or under DeepSpeed, in processes of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    process = start([*command, "-m", "sftdiff.steps", str(directory)], log)
    process.communicate()
    if process.returncode and state(directory) == "open":
        record_loss(directory, process.returncode)
    return "done" if state(directory) == "done" else "failed"


class Progress:
    """Prints a line when a step ends, and on a terminal one that shows the running step; both with an estimate of the rest."""

    def __init__(self, todo: Sequence[PlannedStep], console: Console) -> None:
        self.console, self.left = console, list(todo)
        self.seconds: dict[str, list[float]] = {}
        self.total, self.ended = len(todo), 0

    def estimate(self, kind: str) -> float:
        known = self.seconds.get(kind)
        return sum(known) / len(known) if known else GUESSES.get(kind, 0.3)

    def remaining(self, share: float = 0.0, running_left: float | None = None) -> str:
        """Return the time left: `share` of the running step is done, or `running_left` seconds of it are left."""
        running = self.estimate(self.left[0].kind) if self.left else 0.0
        left = (1 - share) * running if running_left is None else running_left
        seconds = sum(self.estimate(step.kind) for step in self.left[1:]) + left
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(seconds, 0):.0f} s"

    def end(self, step: PlannedStep, outcome: str, seconds: float, note: str) -> None:
        self.left.remove(step)
        self.ended += 1
        if outcome == "done":
            self.seconds.setdefault(step.kind, []).append(seconds)
        mark = "" if outcome == "done" else f" [bold red]{outcome}[/]"
        self.console.print(
            f"[dim]{self.ended:>3}/{self.total}[/] {step.id}{mark} [dim]{seconds:.1f} s{note}; about {self.remaining()} left[/]"
        )

    def watch(self, step: PlannedStep, directory: Path, stop: threading.Event) -> None:
        """Show the running step until it ends. Without a terminal nothing is shown: lines of finished steps must do."""
        if not self.console.is_terminal:
            stop.wait()
            return
        with Bar(*BAR_COLUMNS, console=self.console, transient=True) as bar:
            task = bar.add_task(step.id, total=1.0, text="")
            while not stop.wait(TICK_SECONDS):
                share, text, left = _share(directory)
                bar.update(task, completed=share, text=f"{text} [dim]about {self.remaining(share, left)} left[/]")


def _share(directory: Path) -> tuple[float, str, float | None]:
    """Return how much of a running step is done, in words too, and how many seconds its rate leaves (None if it has none)."""
    try:
        now = json.loads((directory / "progress.json").read_text())
    except (OSError, json.JSONDecodeError):
        return 0.0, "", None
    share = min(now["done"] / max(now["total"], 1), 1.0)
    text = f"{now['done']:,.0f}/{now['total']:,.0f} {now['unit']}"
    if not now["per_second"]:
        return share, text, None
    return share, f"{text}, {now['per_second']:.1f}/s", max(now["total"] - now["done"], 0) / now["per_second"]


def precision_warning(plan: Plan, cpuinfo: Path = Path("/proc/cpuinfo"), gpu: Path = Path("/dev/nvidiactl")) -> str:
    """Return what to say when a sweep computes in bf16 and this machine has no instructions for it; else ""."""
    parts = [["sampling"] if c.evaluated else ["train", "sampling"] for c in plan.cells if c.config["model"]["origin"] != "api"]
    wanted = any(c.config[part]["precision"] == "bf16" for c, names in zip(plan.cells, parts, strict=False) for part in names)
    if not wanted or gpu.exists() or not cpuinfo.exists():  # not Linux
        return ""
    if re.search(r"^(flags|Features)\s*:.*\b(avx512_bf16|amx_bf16|avx512bw|bf16)\b", cpuinfo.read_text(), re.MULTILINE):
        return ""
    return (
        "This processor has no bf16 instructions, and the sweep computes in bf16: hours here instead of minutes. "
        "Add train.precision=fp32 sampling.precision=fp32"
    )


def run_steps(plan: Plan, todo: Sequence[PlannedStep], processes: int, console: Console) -> dict[str, str]:
    """Run steps in order and return the outcome of each: done, failed, blocked or lost."""
    folder = plan.runs / "sweeps" / plan.sweep
    worker, progress, outcomes = Worker(folder / "worker.log"), Progress(todo, console), dict[str, str]()
    try:
        for step in todo:
            outcomes[step.id] = _run_one(step, plan, worker, progress, outcomes, processes)
            if outcomes[step.id] in ("failed", "lost"):
                console.print(f"  [red]{escape(error_of(plan.directory(step.id)))}[/]")
    except KeyboardInterrupt:
        raise SftdiffError("stopped; the same command goes on from here") from None
    finally:
        worker.close()
    return outcomes


def _run_one(
    step: PlannedStep, plan: Plan, worker: Worker, progress: Progress, outcomes: dict[str, str], processes: int
) -> str:
    directory, started = plan.directory(step.id), time.time()
    bad = [i for i in step.inputs.values() if outcomes.get(i, "done") != "done"]
    if bad and step.kind != "report":
        progress.end(step, "blocked", 0.0, f" (needs {bad[0]})")
        return "blocked"
    stop = threading.Event()
    watcher = threading.Thread(target=progress.watch, args=(step, directory, stop), daemon=True)
    watcher.start()
    try:
        ranked = step.kind == "train" and (processes > 1 or step.runtime["deepspeed"]["stage"] > 0)
        outcome = run_ranks(directory, processes, worker.log) if ranked else worker.run(directory)
    finally:
        stop.set()
        watcher.join()
    progress.end(step, outcome, time.time() - started, _note(directory))
    return outcome


def _note(directory: Path) -> str:
    if state(directory) != "done":
        return ""
    rate: Any = read_json(directory / "DONE")["summary"].get("tokens_per_second")
    return f", {rate:.0f} tokens/s" if rate else ""


def error_of(directory: Path) -> str:
    """Return what a failed step says went wrong."""
    path = directory / "FAILED"
    if path.exists():
        return str(read_json(path)["error"])
    if shutil.disk_usage(directory).free < FULL_DISK:  # there was no room for the error either
        return describe_os_error(OSError(errno.ENOSPC, "", str(directory)))
    return f"no error was recorded; see {directory / 'logs'} and the sweep's worker.log"
