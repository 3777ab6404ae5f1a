"""How a sweep looks: steps by kind and state, its cells, its failures in groups, and what to do next.

Everything that comes from a step (errors, names) is shown as plain text, without the control sequences that it may hold.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from launch.logs import attempts, clean, job_logs, on_one_line, tail
from launch.look import KIND_ORDER, UNKNOWN, Look, needs
from launch.states import STATES, TO_REPEAT, StepState
from launch.sweep import cell_name, cell_steps, command
from sftdiff.records import read_done
from sftdiff.words import counted, time_text

SHOWN_CELLS, SHOWN_ERRORS = 40, 20
ERROR_LENGTH = 300  # characters of an error in the view of a sweep; the view of a cell has all
MEASURED = 20  # done steps of a kind that the time left is estimated from
NUMBER = re.compile(r"[0-9a-f]{12}|\d+(_\d+)?")
ORDER = (*STATES, UNKNOWN)  # of a table's columns
URGENCY = ("done", "open", UNKNOWN, "queued", "running", "stale", "blocked", "lost", "failed")
COLOURS = dict.fromkeys(ORDER, "") | {"done": "green", "running": "cyan", "open": "dim", "stale": "magenta", "failed": "red",
                                      "blocked": "yellow", "lost": "red", UNKNOWN: "magenta"}  # fmt: skip


def summary_line(look: Look, steps: Collection[str]) -> str:
    """Return what steps come to in one line."""
    counts = Counter(look.states[step].state for step in steps)
    shown = [f"{counts[state]:,} {state}" for state in ORDER if counts[state] and state != "done"]
    return f"{counts['done']:,} of {len(steps):,} steps done" + "".join(f", {part}" for part in shown)


def sweep_view(look: Look, rows: int = SHOWN_CELLS) -> RenderableType:
    """Return the view of a sweep: kinds, cells, failures, and what to do next."""
    parts: list[RenderableType] = [Text.assemble((f"Sweep {look.sweep.name}", "bold"), f": {summary_line(look, look.states)}")]
    if look.no_answer:
        why = on_one_line(look.no_answer, ERROR_LENGTH // 2)
        parts.append(Text(f"The queue cannot be asked ({why}): {UNKNOWN} steps were submitted and have no result", "magenta"))
    parts += [Text(), kinds_table(look), *_waiting(look), Text(), *cells_table(look, rows)]
    if failures := list(failure_lines(look)):
        parts += [Text(), *failures]
    return Group(*parts, Text(), *(Text(line) for line in next_lines(look)))


def kinds_table(look: Look) -> Table:
    """Return the table step kind x state with the states that occur."""
    counts = Counter((look.sweep.steps[step].kind, found.state) for step, found in look.states.items())
    states = [state for state in ORDER if any(state == s for _, s in counts)]
    columns = [Column(Text(state, COLOURS[state]), justify="right") for state in states]
    table = Table("step", *columns, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for kind in sorted({kind for kind, _ in counts}, key=KIND_ORDER.__getitem__):
        numbers = [counts[kind, state] for state in states]
        table.add_row(kind, *(Text(f"{n:,}" if n else "", COLOURS[s]) for n, s in zip(numbers, states, strict=True)))
    return table


def _waiting(look: Look) -> list[Text]:
    """Say what the jobs in the queue wait for."""
    reasons = Counter(on_one_line(job.reason, 60) for key in look.jobs if not (job := look.queue[key]).running)
    shown = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
    return [Text(f"Jobs that wait, by Slurm's reason: {shown}", "dim")] if shown else []


def cells_table(look: Look, rows: int) -> list[RenderableType]:
    """Return the table cell x step kind; of a sweep with more cells than `rows` only cells that are not done."""
    all_cells = [(cell, needs(look.sweep, cell_steps(cell))) for cell in look.sweep.cells]
    waiting = [(cell, steps) for cell, steps in all_cells if any(look.states[step].state != "done" for step in steps)]
    summary = f"{len(all_cells) - len(waiting):,} of {len(all_cells):,} cells are done."
    chosen = all_cells if len(all_cells) <= rows else sorted(waiting, key=lambda entry: _urgency(look, entry[1]))
    shown = chosen[:rows]
    kinds = {look.sweep.steps[step].kind for _, steps in shown for step in steps if look.states[step].state != "done"}
    if not shown or not kinds:
        return [Text(summary)]
    columns = sorted(kinds, key=KIND_ORDER.__getitem__)
    table = Table(box=None, pad_edge=False)
    table.add_column("cell", overflow="fold")
    for kind in columns:
        table.add_column(kind)
    for cell, steps in shown:
        found = {kind: [look.states[s] for s in steps if look.sweep.steps[s].kind == kind] for kind in columns}
        table.add_row(Text(clean(cell_name(cell))), *(_cell(found[kind]) for kind in columns))
    left = len(waiting) - len(shown)
    more = f" {counted(left, 'more cell')} {'is' if left == 1 else 'are'} not done; --json lists all." if left > 0 else ""
    return [table, Text(summary + more)]


def _urgency(look: Look, steps: Sequence[str]) -> int:
    states = {look.states[step].state for step in steps}
    return 0 if "running" in states else 1 if states & {*TO_REPEAT, "stale"} else 2


def _cell(found: Sequence[StepState]) -> Text:
    """Return what a cell's steps of one kind come to: how many are done, the most urgent state, how far a running one is."""
    counts = Counter(step.state for step in found)
    if not counts:
        return Text("")
    worst = max(counts, key=URGENCY.index)
    far = next((_progress(step.progress) for step in found if step.state == "running" and step.progress), "")
    if len(found) == 1:
        text = far or worst
    elif len(counts) == 1:
        text = f"{worst} {far}"
    elif counts["done"]:
        text = f"{counts['done']}/{len(found)} done, {counts[worst]} {worst} {far}"
    else:
        text = f"{counts[worst]}/{len(found)} {worst} {far}"
    return Text(text.strip(), COLOURS[worst])


def _progress(now: Mapping[str, Any]) -> str:
    rate = f", {now['per_second']:,.0f} {clean(str(now['unit']))}/s" if now.get("per_second") else ""
    return f"{100 * now['done'] / max(now['total'], 1):.0f} %{rate}"


def failure_lines(look: Look) -> Iterator[Text]:
    """Yield failed, lost and blocked steps with their error; equal ones (but for names and numbers) as one."""
    groups = failure_groups(look)
    for steps in groups[:SHOWN_ERRORS]:
        found, kinds = look.states[steps[0]], Counter(look.sweep.steps[step].kind for step in steps)
        names = steps[0] if len(steps) == 1 else ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        example = f"  (such as {steps[0]})" if len(steps) > 1 else ""
        yield Text.assemble((f"{found.state:<8}", COLOURS[found.state]), f"{names}{example}")
        yield Text(f"        {on_one_line(found.note, ERROR_LENGTH) or 'no error was recorded'}")
        if found.state == "lost" and (words := last_words(look, steps[0])):
            yield Text(f"        its job's log ends: {words}")
    if len(groups) > SHOWN_ERRORS:
        yield Text(f"... and {len(groups) - SHOWN_ERRORS:,} other errors")


def last_words(look: Look, step: str) -> str:
    """Return the last line that the job of a lost step wrote, or ""."""
    chunks = [chunk for chunk in look.chunks if chunk.job_id and any(step in job["steps"] for job in chunk.jobs)]
    for path in job_logs(look.states[step], chunks[-1] if chunks else None):
        if lines := [line for line in tail(path, 20) if line.strip() and not line.startswith("sftdiff: start ")]:
            return on_one_line(lines[-1], ERROR_LENGTH)
    return ""


def failure_groups(look: Look) -> list[list[str]]:
    """Return the failed, lost and blocked steps, those with the same cause together; what only waits for others comes last."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for step, found in look.states.items():
        if found.state in TO_REPEAT:
            same = NUMBER.sub("#", on_one_line(found.note.replace(step, "STEP"), ERROR_LENGTH))
            kind = look.sweep.steps[step].kind
            key = ("blocked",) if found.state == "blocked" else (found.state, kind, same)
            groups.setdefault(key, []).append(step)
    return sorted(groups.values(), key=lambda steps: (look.states[steps[0]].state == "blocked", -len(steps)))


def next_lines(look: Look) -> Iterator[str]:
    """Yield what a user can do now, how long it may take, and where the report is."""
    sweep, moving = look.sweep, look.count("running", "queued", UNKNOWN)
    if look.count("running") and (left := time_left(look)):
        yield left
    if moving:
        yield f"Go on looking:    {command(sweep, 'status', sweep.name, '--watch')}"
    if broken := [step for steps in failure_groups(look) for step in steps]:
        yield f"Read its log:     {command(sweep, 'logs', broken[0])}"
        if sweep.launcher:
            yield f"Start it again:   {command(sweep, 'retry', sweep.name)}"
    if (not sweep.launcher and broken) or (not moving and not look.jobs and look.count("open", "stale")):
        yield "Do what is not done: run the sweep's command again; finished steps are kept"
    report = sweep.folder / "report.html"
    if report.is_file():
        yield f"Report:           {report}"


def time_left(look: Look) -> str:
    """Estimate how long the steps under way take: from the seconds of done steps of their kind, as many at a time as run now.

    Returns "" while a kind has no done step to measure by (but the report, which is short).
    """
    means, rest, chain = _mean_seconds(look), dict[str, float](), dict[str, float]()
    for step_id, step in look.sweep.steps.items():
        found = look.states[step_id]
        if found.state in ("running", "queued", "open"):
            share = found.progress["done"] / max(found.progress["total"], 1) if found.progress else 0.0
            rest[step_id] = (1 - share) * means.get(step.kind, 0.0)
        chain[step_id] = rest.get(step_id, 0.0) + max((chain[i] for i in step.inputs.values() if i in chain), default=0.0)
    running = look.count("running")
    seconds = max([sum(rest.values()) / running, *chain.values()])
    unmeasured = {look.sweep.steps[step].kind for step in rest} - {*means, "report"}
    if unmeasured or seconds <= 0:
        return ""
    return f"Time left:        about {time_text(seconds)} if {running:,} run at a time, without waiting for nodes"


def _mean_seconds(look: Look) -> dict[str, float]:
    chosen = dict[str, list[Path]]()
    for step_id, found in look.states.items():
        of_kind = chosen.setdefault(look.sweep.steps[step_id].kind, [])
        if found.state == "done" and len(of_kind) < MEASURED:
            of_kind.append(look.sweep.directory(step_id))
    seconds = {k: [float(d["seconds"]) for p in v if (d := read_done(p)) and "seconds" in d] for k, v in chosen.items()}
    return {kind: sum(values) / len(values) for kind, values in seconds.items() if values}


def steps_view(look: Look, steps: Sequence[str], title: str) -> RenderableType:
    """Return the view of a cell or of one step: all that is known of each step."""
    parts: list[RenderableType] = [Text(title, "bold")]
    for step in steps:
        parts += [Text(), *_step_lines(look, step)]
    return Group(*parts)


def _step_lines(look: Look, step: str) -> Iterator[Text]:
    found, directory = look.states[step], look.sweep.directory(step)
    logs, done = attempts(directory), read_done(directory)
    facts = [f"job {found.job}"] if found.job else []
    facts += [counted(len(logs), "attempt")] if logs else []
    facts += [time_text(float(done["seconds"]))] if done and "seconds" in done else []
    yield Text.assemble((f"{found.state:<8}", COLOURS[found.state]), (step, "bold"), *(f"  {fact}" for fact in facts))
    for line in clean(found.note).splitlines():
        yield Text(f"        {line}")
    yield Text(f"        {directory}", "dim")
    if logs:
        yield Text(f"        {logs[-1]}", "dim")


def as_json(look: Look, cells: Sequence[Mapping[str, Any]], steps: Iterable[str]) -> dict[str, Any]:
    """Return what launch.status says under --json."""
    shown = {step: _as_json(look, step) for step in steps}
    kinds: dict[str, Counter[str]] = {}
    for entry in shown.values():
        kinds.setdefault(entry["kind"], Counter())[entry["state"]] += 1
    report = look.sweep.folder / "report.html"
    return {
        "sweep": look.sweep.name,
        "report": str(report.resolve()) if report.is_file() else None,
        "queue_error": look.no_answer or None,
        "counts": Counter(entry["state"] for entry in shown.values()),
        "kinds": kinds,
        "cells": [{"name": cell_name(c), "steps": {s: shown[s] for s in needs(look.sweep, cell_steps(c))}} for c in cells],
        "steps": shown,
    }


def _as_json(look: Look, step: str) -> dict[str, Any]:
    found = look.states[step]
    kind = look.sweep.steps[step].kind
    return {"kind": kind, "state": found.state, "note": found.note, "job": found.job, "progress": found.progress}
