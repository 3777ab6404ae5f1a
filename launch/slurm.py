"""The Slurm executor: plan a sweep, submit it and say how to look at it; with wait=true, stay until it has ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from launch import cluster
from launch.data import PlannedStep
from launch.environment import refuse_secrets, site_env_file
from launch.jobs import Job, OpenStep, make_jobs
from launch.plan import Plan, build_plan
from launch.resources import check_resources, gpu_hours, gpus_of, resources_of
from launch.run import (
    Builder,
    Cells,
    console,
    print_plan,
    publish_report,
    refuse_generation,
    shown_command,
    steps_to_do,
    written,
)
from launch.submit import Submission, submit
from launch.sweep import Sweep, chunks_of, command, load_sweep, resources_key, write_plan
from sftdiff.errors import SftdiffError, describe_os_error

ZERO_STAGE = 2  # what deepspeed=auto means here


def run_on_slurm(cells: Cells, settings: Mapping[str, Any], build: Builder = build_plan) -> None:
    """Plan a sweep and submit it; raises SftdiffError if it cannot be planned or Slurm refuses it."""
    settings = checked_settings(settings)
    submit_plan(build(cells, shown_command(), ZERO_STAGE), settings)


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the launcher's settings with the site's environment file; raises SftdiffError if they cannot be used."""
    check_resources(settings)
    refuse_secrets(settings["setup"] or [], "hydra.launcher.setup")
    env_file = site_env_file(settings)
    return {**settings, "env_file": str(env_file.absolute()) if env_file else None}


def submit_plan(plan: Plan, settings: Mapping[str, Any]) -> None:
    """Submit what is not done of a plan; raises SftdiffError if Slurm refuses it."""
    if "%" in str(plan.runs.absolute()):
        raise SftdiffError(f"runs: {plan.runs.absolute()} has a %, which Slurm would expand in the names of logs")
    try:
        todo = steps_to_do(plan)
        with written(plan):
            print_plan(plan, todo)
            print_jobs(plan, todo, settings)
        if settings["dry_run"]:
            console.print("Dry run: nothing was submitted.")
            return
        refuse_generation(todo)
        check_name(plan)
        sweep = write_plan(plan, settings)
        print_submission(sweep, submit(sweep))
        if settings["wait"]:
            from launch.status import watch

            watch(sweep)
        elif not todo:
            publish_report(sweep)
    except OSError as error:
        raise SftdiffError(f"{describe_os_error(error)} (the run directory is runs={plan.runs})") from error


def submit_next(plan: Plan, settings: Mapping[str, Any]) -> None:
    """Submit the next round of a diff from a driver job."""
    print_submission(sweep := write_plan(plan, settings), submit(sweep, is_driver=True))


def check_name(plan: Plan) -> None:
    """Raise SftdiffError if the queue cannot be asked, or holds jobs of another sweep of this name: nobody would see them."""
    queue = cluster.queue()
    try:
        before = load_sweep(plan.runs, plan.sweep)
    except SftdiffError:  # there is none, or one of another version
        return
    gone = before.steps.keys() - plan.steps.keys() - {before.report}
    own = {chunk.id for chunk in chunks_of(before)}
    if gone and any(job.chunk in own for job in queue.values()):
        raise SftdiffError(
            f"sweep={plan.sweep} has jobs in the queue for {len(gone)} steps that are not part of this one: "
            f"choose another name with sweep=NAME, or cancel them: {command(before, 'cancel', before.name)}"
        )


def print_jobs(plan: Plan, todo: Sequence[PlannedStep], settings: Mapping[str, Any]) -> None:
    """Print how many jobs there are to be, with what resources, and the GPU-hours that they can take."""
    steps = [OpenStep(step.id, step.kind, step.inputs, resources_key(plan, step.id)) for step in todo]
    jobs = make_jobs(steps, {})
    table = Table(box=None, pad_edge=False)
    for heading in ("jobs", "number", "nodes", "ranks a node", "CPUs a rank", "GPUs", "memory", "time limit"):
        table.add_column(heading)
    for key, count in Counter(job.resources for job in jobs).items():
        r = resources_of(settings, key)
        memory = f"{r['mem_gb']} GB" if r.get("mem_gb") else "-"
        numbers = (count, r["nodes"], r["tasks_per_node"], r.get("cpus_per_task", "-"), gpus_of(r), memory)
        table.add_row(key, *map(str, numbers), f"{r['timeout_min']} min")
    if jobs:
        console.print(table)
    console.print(_hours(jobs, settings, plan))


def _hours(jobs: Sequence[Job], settings: Mapping[str, Any], plan: Plan) -> str:
    limit, measured, seen = gpu_hours(settings, jobs, plan.runs)
    known = f"; about {measured:,.2f} after the {seen} finished steps of these kinds in {plan.runs}" if seen and limit else ""
    return f"GPU-hours: {limit:,.1f} at most (every job up to its time limit){known}"


def print_submission(sweep: Sweep, made: Submission) -> None:
    """Print the job ids, and how to look at the sweep."""
    for chunk in made.chunks:
        ids = f"{chunk.job_id}_[0-{len(chunk.jobs) - 1}]" if len(chunk.jobs) > 1 else chunk.job_id
        waits = f" [dim]after {escape(chunk.dependency)}[/]" if chunk.dependency else ""
        word = "jobs" if len(chunk.jobs) > 1 else "job "
        console.print(f"  {chunk.kind:<9} {len(chunk.jobs):>5} {word}  {escape(str(ids))}{waits}")
    jobs = sum(len(chunk.jobs) for chunk in made.chunks)
    if jobs:
        console.print(f"[bold]Submitted sweep {sweep.name}[/]: {jobs:,} jobs in {len(made.chunks)} submissions.")
    elif not made.held:
        console.print("Everything is done already: nothing to submit.")
    if made.held:
        console.print(f"{made.held} steps are in the queue already; they are not submitted twice.")
    if made.left:
        console.print(f"{made.left:,} more jobs are over the limit; the driver job submits them when these have ended.")
    console.print(f"Look at it: {escape(command(sweep, 'status', sweep.name, '--watch'))}   (and logs, cancel, retry)")
