"""The sbatch script of a chunk: what each job sets up, runs and does when it fails. Submitted through submitit."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from launch import cluster
from launch.jobs import Chunk, Job
from launch.local import MALLOC
from launch.node import DRIVER, ROUND, NodeJob
from launch.resources import ranks_of, resources_of
from launch.sweep import Submitted, Sweep, cell_name, cell_steps, new_chunk_path, write_chunk
from sftdiff.errors import SftdiffError

# Parameters that submitit has for all executors; the others are called slurm_NAME.
GENERAL = ("name", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min", "stderr_to_stdout")
# What a site may set for all of a user's jobs, where the launcher's settings say nothing; any other SBATCH_ variable would change
# what our jobs ask for, where they write or whether they start again.
KEPT = {"partition": "SBATCH_PARTITION", "account": "SBATCH_ACCOUNT", "qos": "SBATCH_QOS", "reservation": "SBATCH_RESERVATION"}
LIMIT_REACHED = ("QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit", "AssocGrpSubmitJobsLimit", "job submit limit")


class SubmitLimit(SftdiffError):
    """Slurm takes no more jobs of this user for now."""


class Script:
    """Makes the sbatch script of a chunk, and submits it."""

    def __init__(self, sweep: Sweep, snapshot: Path, has_env: bool) -> None:
        self.sweep, self.snapshot, self.has_env = sweep, snapshot, has_env
        self.names = step_names(sweep)

    def submit(self, chunk: Chunk, waits: str | None) -> Submitted:
        settings = self.sweep.launcher
        resources = resources_of(settings, chunk.resources if chunk.kind not in (DRIVER, ROUND) else "report")
        path = new_chunk_path(self.sweep, chunk.kind)
        jobs = [
            {"steps": job.steps, "name": self._name(job), "runtime": {s: self.sweep.steps[s].runtime for s in job.steps}}
            for job in chunk.jobs
        ]
        made = Submitted(path, chunk.kind, jobs, None, waits, resources, ranks_of(resources))
        write_chunk(made)
        executor = submitit.AutoExecutor(made.logs, cluster="slurm", slurm_max_num_timeout=settings["max_num_timeout"])
        parameters = self.parameters(made, waits)
        executor.update_parameters(**{k if k in GENERAL else f"slurm_{k}": v for k, v in parameters.items()})
        try:
            with _sbatch_environment(resources):
                tasks = executor.map_array(NodeJob(), [str(path.absolute())] * len(jobs), range(len(jobs)))
        except (FailedSubmissionError, FailedJobError) as error:
            path.unlink()
            raise _refusal(str(error), chunk) from None
        made.job_id = tasks[0].job_id.partition("_")[0]
        write_chunk(made)
        return made

    def _name(self, job: Job) -> str:
        return self.names.get(job.steps[-1], job.kind) if job.steps else job.kind

    def parameters(self, chunk: Submitted, waits: str | None) -> dict[str, Any]:
        settings, resources = self.sweep.launcher, dict(chunk.resources)
        more = {"requeue": True, "kill-on-invalid-dep": "yes"} | resources.pop("additional_parameters", {})
        comment = f"{cluster.MARK}{chunk.id}" + (f" {settings['comment']}" if settings["comment"] else "")
        return resources | {
            "name": f"{self.sweep.name}-{chunk.kind}",
            "comment": comment,
            "wckey": "",  # submitit would set one of its own, which a site may not know
            "additional_parameters": more | ({"dependency": waits} if waits else {}),
            "srun_args": ["--kill-on-bad-exit=1"] + ([f"--cpus-per-task={c}"] if (c := resources.get("cpus_per_task")) else []),
            "setup": [*self._setup(), *(settings["setup"] or [])],
            "teardown": self._teardown(chunk),
            "stderr_to_stdout": False,
        }

    def _setup(self) -> list[str]:
        code = shlex.quote(str(self.snapshot))
        lines = [f"source {code}/env.sh"] if self.has_env else []
        return [
            *lines,
            f"export SFTDIFF_CODE={code} PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
            "export TOKENIZERS_PARALLELISM=false",
            "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
            "export " + " ".join(f"{name}=${{{name}:-{value}}}" for name, value in MALLOC.items()),
            'echo "sftdiff: start ${SLURM_RESTART_COUNT:-0}" >&2',
        ]

    def _teardown(self, chunk: Submitted) -> list[str]:
        """When srun has failed, find out why; a job whose process was killed is queued again."""
        ended = [sys.executable, "-m", "launch.node", str(chunk.path.absolute()), str(self.sweep.launcher["max_restarts"])]
        return ["status=$?", f"[ $status -eq 0 ] || {{ {shlex.join(ended)} $status; status=$?; }}", "exit $status"]


def step_names(sweep: Sweep) -> dict[str, str]:
    """Return step id -> name of the first cell that it belongs to."""
    names: dict[str, str] = {sweep.report: "report"}
    for cell in sweep.cells:
        for step in cell_steps(cell):
            names.setdefault(step, cell_name(cell))
    return names


@contextmanager
def _sbatch_environment(resources: Mapping[str, Any]) -> Iterator[None]:
    """Hide from sbatch what would win over our settings; inside a job (the driver) also the variables of that job."""
    kept = dict(os.environ)
    clean = cluster.without_job_variables(kept) if cluster.inside_job() else dict(kept)
    allowed = {variable for key, variable in KEPT.items() if resources.get(key) is None}
    clean = {k: v for k, v in clean.items() if not k.startswith("SBATCH_") or k in allowed}
    os.environ.clear()
    os.environ.update(clean)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _refusal(text: str, chunk: Chunk) -> SftdiffError:
    reason = next((line for line in text.splitlines() if "error:" in line), text.strip().splitlines()[-1] if text.strip() else "")
    if any(word in text for word in LIMIT_REACHED):
        return SubmitLimit(
            f"Slurm refuses more jobs for this user ({reason}): set hydra.launcher.max_submit to your limit, or run the same "
            "command again when jobs have ended"
        )
    return SftdiffError(
        f"Slurm refuses the {chunk.kind} jobs ({chunk.resources}): {reason}. Change hydra.launcher settings (partition, account, "
        f"resources.{chunk.kind}) and run the same command again"
    )
