"""Seconds from the status command to its answer, for a sweep of 1,000 cells (9,000 steps); with a real squeue if Slurm is here.

    python -m tests.bench.status [CELLS]

60 % of the cells are done, 10 % failed in training, the others have their jobs in the queue of a private cluster, held. The last
line is `ratio R`: CPU time of `python -m launch.status` divided by that of a Python process which does nothing but parse the DONE
records of the sweep, which no answer from the directories could go without. CPU time, so that a busy machine does not blur it.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TREE), str(TREE / "tests")]

from commands import environment, plan  # noqa: E402

from launch.look import needs  # noqa: E402
from launch.sweep import Submitted, Sweep, cell_steps, new_chunk_path, write_chunk, write_plan  # noqa: E402
from sftdiff.identity import digest  # noqa: E402
from sftdiff.records import write_json  # noqa: E402

RUNS = 5
PARSE = "import json, sys\nfor line in sys.stdin:\n    json.load(open(line.strip()))"


def make_sweep(runs: Path, cells: int) -> Sweep:
    """Write a sweep in which every cell has a mixture of its own, as a curve over shares has; mark most of its steps."""
    shares = ",".join(f"{k / (cells // 4 + 1):.5f}" for k in range(1, cells // 4 + 1))
    axes = ("teacher=gemini,olmo", "filter=none,keyword", f"prompt_subset.share={shares}")
    planned = plan(*axes, "prompt_subset=random_share", "prompt_subset.treatment=drop", f"runs={runs}", "sweep=bench")
    sweep = write_plan(planned, {"max_submit": None})
    trained = [cell for cell in sweep.cells if not cell["untrained"]]
    done, failed = len(trained) * 6 // 10, len(trained) * 7 // 10
    finished = [cell for cell in sweep.cells if cell["untrained"]] + trained[:done]
    for step in {step for cell in finished for step in needs(sweep, cell_steps(cell))}:
        write_done(sweep, step)
    for cell in trained[done:failed]:
        for step in needs(sweep, [cell["steps"]["pack"]]):
            write_done(sweep, step)
        error = f"OutOfMemoryError: CUDA out of memory (full trace: {sweep.directory(cell['steps']['train'])}/logs/attempt_1)"
        write_json(sweep.directory(cell["steps"]["train"]) / "FAILED", {"error": error, "outcome": "failed", "time": 0.0})
    return sweep


def write_done(sweep: Sweep, step: str) -> None:
    """Write the DONE record of a step that made four files."""
    files = {f"model/file_{n}": {"bytes": 1000 * n, "sha256": digest(f"{step}{n}", 64)} for n in range(4)}
    record = {
        "content": digest(step, 64),
        "outputs": files,
        "inputs": {i: digest(i, 64) for i in sweep.steps[step].inputs.values()},
        "absent": [],
        "summary": {"tokens_per_second": 812.0, "peak_memory_gb": 1.5},
        "seconds": 30.0,
        "finished": "2026-01-01T00:00:00Z",
    }
    write_json(sweep.directory(step) / "DONE", record)


def submit_held(sweep: Sweep) -> int:
    """Submit the trainings and evaluations of the last 30 % of the cells as held arrays; return the number of jobs."""
    trained = [cell for cell in sweep.cells if not cell["untrained"]]
    waiting = trained[len(trained) * 7 // 10 :]
    mixtures = [[cell["steps"]["mixture"], cell["steps"]["pack"]] for cell in waiting]
    samples = [[step for step in needs(sweep, cell_steps(cell)) if step.startswith(("sample-", "judge-"))] for cell in waiting]
    arrays = {"mixture": mixtures, "train": [[cell["steps"]["train"]] for cell in waiting], "sample": samples}
    for kind, jobs in arrays.items():
        path = new_chunk_path(sweep, kind)
        chunk = Submitted(path, kind, [{"steps": steps, "name": "cell"} for steps in jobs], None, None, {}, 1)
        held = ["sbatch", "--parsable", "--hold", f"--array=0-{len(jobs) - 1}", f"--comment=sftdiff:{chunk.id}", "--wrap=true"]
        chunk.job_id = subprocess.run(held, capture_output=True, text=True, check=True).stdout.strip()
        write_chunk(chunk)
    return sum(map(len, arrays.values()))


def measure(command: list[str], text: str = "") -> tuple[float, float, str]:
    """Return the seconds and the CPU seconds of a command, each the smallest of several runs, and what it printed."""
    walls, cpus = [], []
    for _ in range(RUNS):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment(), cwd="/", check=True)
        walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(walls), min(cpus), done.stdout


def report(runs: Path, cells: int) -> None:
    sweep = make_sweep(runs, cells)
    jobs = submit_held(sweep) if shutil.which("slurmctld") else 0
    wall, cpu, output = measure([sys.executable, "-m", "launch.status", "status", "bench", f"runs={runs}"])
    print(output)
    records = [str(path) for path in runs.glob("steps/*/DONE")]
    parsing_wall, parsing_cpu, _ = measure([sys.executable, "-c", PARSE], "\n".join(records))
    where = f"{jobs:,} jobs in the queue" if jobs else "without Slurm, which is not installed"
    print(f"{len(sweep.cells):,} cells, {len(sweep.steps):,} steps, {len(records):,} of them done; {where}")
    print(f"status           {wall:6.2f} s {cpu:6.2f} s of CPU")
    print(f"parsing records  {parsing_wall:6.2f} s {parsing_cpu:6.2f} s of CPU")
    print(f"ratio {cpu / parsing_cpu:.1f}")


def main() -> None:
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        devcluster, there = str(TREE / "slurm/devcluster"), ["--dir", f"{folder}/cluster"]
        if not shutil.which("slurmctld"):
            report(Path(folder) / "runs", cells)
            return
        os.environ["SLURM_CONF"] = f"{folder}/cluster/etc/slurm.conf"
        subprocess.run([sys.executable, devcluster, "start", *there, "--nodes", "1"], check=True, capture_output=True)
        try:
            report(Path(folder) / "runs", cells)
        finally:
            subprocess.run([sys.executable, devcluster, "stop", *there], check=True, capture_output=True)


if __name__ == "__main__":
    main()
