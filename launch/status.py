"""Look at a sweep, read its logs, cancel it, start again what failed:

    python -m launch.status [status|logs|cancel|retry] [SWEEP] [CELL|STEP] [--watch|--json] [--lines N] [runs=FOLDER]

Without a word it is status, without SWEEP the newest sweep. CELL is a cell's name, or a part of it that no other cell has; STEP
is a step's id, or the hash at its end. `status --json` prints one object for programs, whose keys stay:

    sweep, report    the sweep's name; the path of its report.html, or null
    queue_error      why Slurm's queue could not be asked, or null
    counts, kinds    {state: number of steps}, and {kind: {state: number of steps}}
    cells            [{"name": NAME, "steps": {id: STEP}}], each with all steps that the cell depends on
    steps            {id: STEP}; STEP has kind, state, note (how far it is, or its error), job (in the queue, or its last one; "")
                     and progress: null, or {done, total, unit, per_second, time}

States are those of launch/states.py, and `unknown`: submitted, without a result, and the queue cannot be asked (no Slurm commands
on this machine, or no answer), so that nobody can tell whether its job waits or is gone. Without the queue, a step whose claim
has a fresh heartbeat is running.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from launch import cluster
from launch.logs import attempts, clean, job_logs, make_console, on_one_line, ranks_of, tail
from launch.look import UNKNOWN, Look, Target, find, look, needs
from launch.sweep import Sweep, cell_steps, command
from launch.table import ERROR_LENGTH, SHOWN_CELLS, as_json, failure_groups, steps_view, summary_line, sweep_view
from sftdiff.errors import SftdiffError, describe_os_error
from sftdiff.words import counted

EVERY_SECONDS = 2.0
LOGGED = 20  # steps whose logs one call prints
console = make_console()


def show_status(target: Target, options: argparse.Namespace) -> None:
    """Print the state of a sweep, a cell or a step: once, as JSON, or until nothing is under way."""
    if options.watch:
        if target.kind == "sweep":
            watch(target.sweep)
        elif (last := follow(target)) is not None:
            console.print(view(last, target))
        return
    found = look(target.sweep)
    if options.json:
        print(json.dumps(as_json(found, target.cells, target.steps), indent=1))
    else:
        console.print(view(found, target))


def view(found: Look, target: Target, rows: int = SHOWN_CELLS) -> RenderableType:
    """Return what is shown of a target, of a sweep at most `rows` cells."""
    return sweep_view(found, rows) if target.kind == "sweep" else steps_view(found, target.steps, clean(str(target)))


def watch(sweep: Sweep) -> None:
    """Show a sweep until it has ended, then its report. Ctrl-C ends the watching only.

    Raises SftdiffError, with their number and the first error, if steps are not done.
    """
    found = follow(Target(sweep, "sweep", sweep.name, sweep.cells, list(sweep.steps)))
    if found is None:
        return
    console.print(sweep_view(found))
    from launch.run import publish_report

    publish_report(sweep)
    missing = [step for step in sweep.steps if found.states[step].state != "done"]
    if missing:
        first = next((step for steps in failure_groups(found) for step in steps), missing[0])
        note = on_one_line(found.states[first].note, ERROR_LENGTH) or found.states[first].state
        total = f"{len(missing):,} of {len(sweep.steps):,} steps of sweep {sweep.name} are not done"
        raise SftdiffError(f"{total}. The first error: {first}: {note}")


def follow(target: Target) -> Look | None:
    """Show a target every two seconds until nothing of it is under way, and return the last look; None after Ctrl-C."""
    try:
        with _screen(target) as show:
            still = 0
            while True:
                started = time.monotonic()
                found = look(target.sweep)
                show(found)
                states = {found.states[step].state for step in target.steps}
                moving = states & {"running", "queued", UNKNOWN} or (target.kind == "sweep" and found.jobs)
                # Twice, since a local sweep is between two steps now and then, and a file system shows a result late.
                still = 0 if moving else still + 1
                if still == 2 or (states == {"done"} and not moving):
                    return found
                time.sleep(max(EVERY_SECONDS, 4 * (time.monotonic() - started)))  # a large sweep must not load the login node
    except KeyboardInterrupt:
        again = command(target.sweep, "status", *target.words, "--watch")
        console.print(Text(f"No longer watching; what was started goes on. Look again: {again}"))
        return None


@contextlib.contextmanager
def _screen(target: Target) -> Iterator[Callable[[Look], None]]:
    """Yield what shows a look: in place on a terminal, else one line when something has changed."""
    if console.is_terminal:
        from rich.live import Live

        with Live(console=console, auto_refresh=False, transient=True) as live:
            # Of a large sweep as many cells as leave room for the rest.
            yield lambda found: live.update(view(found, target, max(console.height - 24, 5)), refresh=True)
        return
    last = ""

    def show(found: Look) -> None:
        nonlocal last
        line = summary_line(found, target.steps)
        if line != last:
            console.print(Text(f"{time.strftime('%H:%M:%S')}  {line}"))
        last = line

    yield show


def show_logs(target: Target, options: argparse.Namespace) -> None:
    """Print the ends of the newest logs of a target's running, failed and lost steps, or of one step in any state."""
    found = look(target.sweep)
    if target.kind == "step":
        for path in attempts(target.sweep.directory(target.name)):
            console.print(Text(f"attempt: {path}"))
        chosen = target.steps
    else:
        wanted = set(target.steps)
        groups = [[s for s in group if s in wanted] for group in failure_groups(found)]
        groups = [group for group in groups if group and found.states[group[0]].state != "blocked"]
        running = [step for step in target.steps if found.states[step].state == "running"]
        rest = [s for group in groups for s in group[1:] if attempts(target.sweep.directory(s))]
        chosen = [*(group[0] for group in groups), *running, *rest]  # each error once before the second of the same
    if not chosen:
        names = command(target.sweep, "logs", "STEP")
        console.print(Text(f"No step of {target} is running, failed or lost. The logs of any step: {names}"))
    for step in chosen[:LOGGED]:
        _print_logs(found, step, options.lines)
    if len(chosen) > LOGGED:
        console.print(Text(f"... and {len(chosen) - LOGGED:,} more steps are running, failed or lost; name a cell or a step"))


def _print_logs(found: Look, step: str, lines: int) -> None:
    state, logs = found.states[step], attempts(found.sweep.directory(step))
    of_job = {s: chunk for chunk in found.chunks if chunk.job_id for job in chunk.jobs for s in job["steps"] if s == step}
    shown = [logs[-1], *ranks_of(logs[-1])] if logs else []
    if state.state == "lost" or not shown:
        shown += job_logs(state, of_job.get(step))
    console.print(Text(f"{step}: {state.state}", "bold"))
    for line in clean(state.note).splitlines():
        console.print(Text(line))
    for path in shown:
        console.print(Text(f"--- {path}", "dim"))
        for line in tail(path, lines):
            console.print(Text(line))
    if not shown:
        console.print(Text("There is no log of it."))


def cancel(target: Target, options: argparse.Namespace) -> None:
    """Cancel the live jobs of a sweep; of a cell those that no other cell needs."""
    from launch.submit import submission_lock

    if target.kind == "step":
        raise SftdiffError(f"cancel takes a sweep or a cell, and {target.name} is a step")
    with submission_lock(target.sweep.runs):
        found = look(target.sweep)
        if found.no_answer:
            raise SftdiffError(f"nothing was cancelled: {found.no_answer}")
        chosen, shared = _own_jobs(found, target)
        whole = target.kind == "sweep"
        cluster.cancel(sorted({key.partition("_")[0] for key in chosen}) if whole else sorted(chosen))
    stay = f" Left in the queue: {counted(shared, 'job')} that other cells need too." if shared else ""
    if not chosen:
        console.print(Text(f"Nothing to cancel: {target} has no job in the queue{' of its own' if shared else ''}.{stay}"))
        return
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in Counter(chosen.values()).items())
    again = command(target.sweep, "retry", *target.words)
    console.print(Text(f"Cancelled {counted(len(chosen), 'job')} of {target} ({kinds}).{stay} Finished steps are kept."))
    console.print(Text(f"Start them again: {again}"))


def _own_jobs(found: Look, target: Target) -> tuple[dict[str, str], int]:
    """Return the jobs to cancel (key -> kind), and how many of the target's jobs other cells need."""
    jobs = found.jobs
    if target.kind == "sweep":
        return {key: chunk.kind for key, chunk in jobs.items()}, 0
    others = {s for c in found.sweep.cells if c not in target.cells for s in needs(found.sweep, cell_steps(c))}
    chosen, shared = dict[str, str](), 0
    for key, chunk in jobs.items():
        steps = set(chunk.jobs[int(key.partition("_")[2] or 0)]["steps"])
        if steps & others:
            shared += bool(steps & set(target.steps))
        elif steps & set(target.steps):
            chosen[key] = chunk.kind
    return chosen, shared


def retry(target: Target, options: argparse.Namespace) -> None:
    """Submit the failed, lost and blocked steps again, with what they depend on."""
    if not target.sweep.launcher:
        raise SftdiffError(f"sweep {target.sweep.name} was run on this machine: run its command again; finished steps are kept")
    from launch.slurm import print_submission
    from launch.submit import submit, to_retry

    steps = to_retry(target.sweep, None if target.kind == "sweep" else target.steps)
    if not steps:
        console.print(Text(f"Nothing to retry: no step of {target} is failed, lost or blocked."))
        return
    print_submission(target.sweep, submit(target.sweep, only=steps))


COMMANDS = {"status": show_status, "logs": show_logs, "cancel": cancel, "retry": retry}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return command, words (without runs=) and options of a command line."""
    name, *rest = arguments if arguments and arguments[0] in COMMANDS else ("status", *arguments)
    parser = argparse.ArgumentParser(
        prog=f"python -m launch.status {name}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="SWEEP|CELL|STEP", help="the newest sweep if left out")
    if name == "status":
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--watch", action="store_true", help="look again every two seconds until nothing is under way")
        how.add_argument("--json", action="store_true", help="print one object for programs")
    if name == "logs":
        parser.add_argument("--lines", type=int, default=40, help="lines of each log (40)")
    options = parser.parse_intermixed_args(rest)
    options.command, options.runs = name, Path("runs")
    for word in options.words:
        if word.startswith("runs="):
            options.runs = Path(word.removeprefix("runs="))
    options.words = [word for word in options.words if not word.startswith("runs=")]
    return options


def main(arguments: Sequence[str]) -> None:
    """Run one command; what a user can act on is one message without a stack trace."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a log may hold what this terminal's encoding does not have
    options = parse(arguments)
    try:
        COMMANDS[options.command](find(options.runs, options.words), options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(describe_os_error(error))
    except SftdiffError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
