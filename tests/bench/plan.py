"""Plan 10,000 cells in a dry run: seconds, peak memory, and how much faster a cell is than with Hydra's stock sweeper.

    python tests/bench/plan.py [CELLS]

The last line is `ratio R`: composition time per cell of the stock BasicSweeper (each job composed by `load_sweep_config`, measured
on a sample of 50 cells) divided by the time per cell of the whole dry run, which also checks, plans and prints.
"""

import resource
import subprocess
import sys
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
        "prompt_subset.treatment=swap",
        "prompt_subset.share=0.05,0.1,0.5,1",
        f"seed=range(0,{seeds})",
    ]


def dry_run(overrides: list[str]) -> tuple[float, float]:
    """Return seconds and peak memory in MiB of a dry run in a process of its own."""
    command = [sys.executable, "-m", "sftdiff.train", "-m", *overrides, "hydra.launcher.dry_run=true"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd="/", check=True)
    seconds = time.perf_counter() - started
    print(done.stdout.splitlines()[0])
    print(done.stdout.splitlines()[-2])
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def stock_seconds_per_cell(overrides: list[str]) -> float:
    """Return the seconds that the stock sweeper needs to compose one cell, as a mean over cells spread over the whole product."""
    parser = OverridesParser.create(config_loader=loader())
    jobs = BasicSweeper.split_arguments(parser.parse_overrides(overrides), max_batch_size=None)[0]
    chosen = [list(jobs[k * len(jobs) // SAMPLE]) for k in range(SAMPLE)]
    config = master()
    started = time.perf_counter()
    for job in chosen:
        loader().load_sweep_config(config, job)
    return (time.perf_counter() - started) / SAMPLE


def main() -> None:
    overrides = command_line(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    cells = 1
    for override in overrides:
        values = override.partition("=")[2]
        cells *= int(values[8:-1]) if values.startswith("range") else len(values.split(","))
    seconds, memory = dry_run(overrides)
    print(f"{cells:,} cells: {seconds:.1f} s, {1000 * seconds / cells:.2f} ms a cell, peak memory {memory:.0f} MiB")
    stock = stock_seconds_per_cell(overrides)
    print(f"stock sweeper: {1000 * stock:.1f} ms a cell, {stock * cells:.0f} s for all")
    print(f"ratio {stock / (seconds / cells):.0f}")


if __name__ == "__main__":
    main()
