"""Submit 1,000 cells to a private Slurm: seconds, calls of sbatch, and how much faster than a call of sbatch for each job.

    python -m tests.bench.submit [CELLS]

The jobs are held, so that none runs while others are submitted. The last line is `ratio R`: the seconds that one `sbatch` for
each job would take (measured on 100 jobs) divided by those of the whole command, which also composes, checks, plans and prints.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TREE), str(TREE / "tests")]

from cluster import private_cluster  # noqa: E402

SAMPLE = 100
SETTINGS = ["-m", "hydra/launcher=slurm", "+hydra.launcher.additional_parameters.hold=true", "teacher=gemini,olmo", "track=off"]


def main() -> None:
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with private_cluster("--nodes", "3") as cluster, tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        text = cluster.sftdiff("sftdiff.train", *SETTINGS, f"seed=range({-(-cells // 2)})", cwd=Path(folder))
        seconds = time.perf_counter() - started
        found = re.search(r"([\d,]+) jobs in (\d+) submissions", text)
        assert found is not None, text
        jobs, calls = (int(number.replace(",", "")) for number in found.groups())
        assert len(cluster.queued()) == jobs
        print(f"{cells:,} cells: {jobs:,} jobs on the queue after {seconds:.1f} s, with {calls} calls of sbatch")
        started = time.perf_counter()
        for _ in range(SAMPLE):
            command = ["sbatch", "--hold", "--wrap", "true", "--output", "/dev/null"]
            subprocess.run(command, env=cluster.environment, check=True, capture_output=True)
        each = (time.perf_counter() - started) / SAMPLE
        print(f"one sbatch a job: {1000 * each:.1f} ms each, {each * jobs:.1f} s for all")
        print(f"ratio {each * jobs / seconds:.1f}")


if __name__ == "__main__":
    main()
