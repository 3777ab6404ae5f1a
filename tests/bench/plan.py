"""Plan 10,000 cells in a dry run: seconds, peak memory, and how much faster a cell is than with Hydra's stock sweeper.

    python -m tests.bench.plan [CELLS]

The last line is `ratio R`: CPU time per cell of the stock BasicSweeper (each job composed by `load_sweep_config`, measured on a
sample of 50 cells) divided by that of the whole dry run, which also checks, plans and prints. CPU time, so that a busy machine
does not blur it; a dry run uses one core.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TREE), str(TREE / "tests")]

from commands import environment, loader, master  # noqa: E402
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402

SAMPLE = 50


def command_line(cells: int) -> list[str]:
    """Return overrides whose product is at least `cells`: 6 choices of groups, 5 learning rates, 4 shares, and seeds."""
    seeds = -(-cells // (6 * 5 * 4))
    return [
        "teacher=gemini,olmo,kimi",
        "filter=none,keyword",
        "train.lr=1e-5,3e-5,1e-4,3e-4,1e-3",
        "prompt_subset=random_share",
        "prompt_subset.treatment=swap",
        "prompt_subset.share=0.05,0.1,0.5,1",
        f"seed=range(0,{seeds})",
    ]


def dry_run(overrides: list[str]) -> tuple[float, float, float]:
    """Return seconds, seconds of CPU and peak memory in MiB of a dry run in a process of its own, and print what it said."""
    command = [sys.executable, "-m", "sftdiff.train", "-m", *overrides, "hydra.launcher.dry_run=true"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=folder, check=True)
    seconds = time.perf_counter() - started
    print(done.stdout.splitlines()[0])
    print(done.stdout.splitlines()[-2])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def stock_seconds_per_cell(overrides: list[str]) -> float:
    """Return the seconds of CPU that the stock sweeper takes to compose a cell: a mean over cells spread over the product."""
    parser = OverridesParser.create(config_loader=loader())
    jobs = BasicSweeper.split_arguments(parser.parse_overrides(overrides), max_batch_size=None)[0]
    chosen = [list(jobs[k * len(jobs) // SAMPLE]) for k in range(SAMPLE)]
    config = master()
    started = time.process_time()
    for job in chosen:
        loader().load_sweep_config(config, job)
    return (time.process_time() - started) / SAMPLE


def main() -> None:
    overrides = command_line(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    cells = 1
    for override in overrides:
        values = override.partition("=")[2]
        cells *= int(values[8:-1]) if values.startswith("range") else len(values.split(","))
    seconds, cpu, memory = dry_run(overrides)
    print(f"{cells:,} cells: {seconds:.1f} s ({cpu:.1f} s of CPU, {1000 * cpu / cells:.2f} ms a cell), at most {memory:.0f} MiB")
    on_slurm, _, memory = dry_run([*overrides, "hydra/launcher=slurm"])
    print(f"with hydra/launcher=slurm, jobs and GPU-hours: {on_slurm:.1f} s, at most {memory:.0f} MiB")
    stock = stock_seconds_per_cell(overrides)
    print(f"stock sweeper: {1000 * stock:.1f} ms a cell, {stock * cells:.0f} s for all")
    print(f"ratio {stock / (cpu / cells):.0f}")


if __name__ == "__main__":
    main()
